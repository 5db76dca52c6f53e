"""One small member of each family, own and of other libraries, with the options that make it small."""

from collections.abc import Mapping
from typing import Any

from vitdense.backbones.external_hf import HfConfig
from vitdense.backbones.hf_network import config_fields
from vitdense.contracts import BACKBONES

Options = dict[str, Any]

_PLAIN = {"embed_dim": 48, "depth": 4, "num_heads": 3}
_STAGED = {"embed_dim": 24, "depths": (2, 2, 2, 2)}
# For each of timm's modules, the smallest network and what makes it smaller.
_TIMM: dict[str, Options] = {
    "beit_base_patch16_224": _PLAIN,
    "deepseek_vit_412m": _PLAIN,
    "gemma4_vit_167m": _PLAIN,
    "naflexvit_base_patch16_gap": _PLAIN,
    "qwen3_vit_88m": _PLAIN,
    "samvit_base_patch16_224": _PLAIN,
    "swin_tiny_patch4_window7_224": _STAGED,
    "swinv2_tiny_window16_256": _STAGED,
    "swinv2_cr_tiny_224": _STAGED,
    "cait_xxs24_224": {"depth": 4},
    "convit_tiny": {"depth": 4},
    "xcit_nano_12_p8_224": {"depth": 4},
    "hiera_tiny_224": {"embed_dim": 24, "stages": (1, 1, 1, 1)},
    "sam2_hiera_tiny": {"embed_dim": 24, "stages": (1, 1, 1, 1), "num_heads": 1},
    "davit_tiny": {"depths": (1, 1, 1, 1), "embed_dims": (24, 48, 96, 192)},
    "twins_svt_small": {"depths": (1, 1, 1, 1)},
    "res2next50": {"layers": (1, 1, 1, 1)},
    "tresnet_m": {"layers": (1, 1, 1, 1)},
    "sequencer2d_s": {"layers": (1, 1, 1, 1)},
    "densenet121": {"block_config": (2, 2, 2, 2)},
}
_TIMM_AS_THEY_ARE = """coat_tiny convmixer_768_32 cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s cspnext_tiny
    deit_tiny_patch16_224 dla46x_c dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientvim_m1
    efficientvit_b0 efficientvit_m0 ese_vovnet19b_slim_dw eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 focalnet_tiny_srf
    gcvit_xxtiny ghostnet_050 gmlp_ti16_224 halonet_h1 hardcorenas_b hgnetv2_b0 hrnet_w18_small iformer_t
    inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnet_035 lcnetv2_small legacy_seresnet18
    legacy_xception levit_128s lowformer_b0 mobilenetv3_small_050 mobilenetv5_base mobilevit_xxs mvitv2_tiny nasnetalarge
    nest_tiny nextvit_small pit_ti_224 pnasnet5large poolformerv2_s12 pvt_v2_b0 rdnet_tiny regnetx_002 repghostnet_050
    repvit_m1 resnest14d resnet18 resnetv2_18 rexnet_100 selecsls42 shvit_s1 skresnet18 starnet_s050 swiftformer_xs
    test_byobnet test_coatnet test_convnext test_efficientnet test_mambaout test_nfnet test_vit test_vit_relpos
    tiny_vit_5m_224 tnt_s_legacy_patch16_224 vgg11 visformer_tiny vit_tiny_patch16_dinov3_qkvb vit_tiny_r_s16_p8_224
    vitamin_small_224 volo_d1_224 xception41p""".split()

_TOWER = {"width": 64, "layers": 4, "head_width": 16}
_OPEN_CLIP: dict[str, Options] = {
    "ViT-B-32": _TOWER,
    "ViT-B-16-quickgelu": _TOWER,
    "ViT-L-14-CLIPA": _TOWER,
    "coca_ViT-B-32": _TOWER,
    "RN50": {"layers": [1, 1, 1, 1], "width": 16, "head_width": 32},
    "ViT-B-32-SigLIP2-256": {},
    "PE-Core-T-16-384": {},
    "EVA02-B-16": {},
    "MobileCLIP-S1": {},
    "MobileCLIP-B": {},
    "ViTamin-S": {},
    "convnext_tiny": {},
    "swin_base_patch4_window7_224": {},
    "vit_medium_patch16_gap_256": {},
    "vit_relpos_medium_patch16_cls_224": {},
}

# Sizes of transformers' configs, put wherever a field of the name is of the same kind and length.
_HF_PLAIN = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
_HF_STAGED: Options = {
    "embed_dim": 24,
    "depths": [2, 2, 2, 2],
    "num_heads": [1, 2, 4, 8],
    "hidden_sizes": [16, 32, 48, 64],
    "num_attention_heads": [1, 2, 2, 4],
    "embedding_size": 16,
}
_HF_OWN_SIZES: dict[str, Options] = {
    "bit": {"depths": [1, 1, 1, 1]},
    "regnet": {"depths": [1, 1, 1, 1]},
    "hgnet_v2": {},
    "sam2_vision_model": {},
    "efficientnet": {"width_coefficient": 1.0, "depth_coefficient": 1.0},
    "mobilevitv2": {"width_multiplier": 0.5},
    "sapiens2": {
        **_HF_PLAIN,
        "num_key_value_heads_per_layer": [2, 1, 1, 2],
        "num_key_value_attention_heads": 1,
        "num_first_full_attention_layers": 1,
        "num_last_full_attention_layers": 1,
    },
}


def examples() -> dict[str, Options]:
    """Names with options: all of our own, then those of timm, hf and open_clip."""
    found: dict[str, Options] = {name: shrunken(name) for name in BACKBONES.names()}
    timm = {**{name: {} for name in _TIMM_AS_THEY_ARE}, **_TIMM}
    found |= {f"timm/{name}": {"config": timm[name]} for name in sorted(timm)}
    found |= {name: {"config": _hf_sizes(name.removeprefix("hf/"))} for name in HfConfig.listed()}
    return found | {f"open_clip/{name}": {"config": config} for name, config in _OPEN_CLIP.items()}


def shrunken(name: str) -> Options:
    """Options that make one of our own narrow and shallow, with the same structure."""
    _, preset = BACKBONES.find(name)
    heads = preset.get("num_heads")
    if isinstance(heads, tuple):
        return {"embed_dim": 4 * heads[0], "depths": (2,) * len(heads)}
    if not isinstance(heads, int):
        return {}
    small: Options = {"embed_dim": 4 * heads, "depth": 4, "image_size": 4 * preset["patch_size"]}
    if preset.get("window"):
        small |= {"window": 3, "global_blocks": (1, 3)}
    if "stem_layers" in preset:
        small |= {"stem_layers": (1,) * len(preset["stem_layers"]), "stem_width": 32}
    return small


def _hf_sizes(name: str) -> Options:
    if name in _HF_OWN_SIZES:
        return _HF_OWN_SIZES[name]
    fields = config_fields(name)
    sizes: Mapping[str, Any] = _HF_STAGED if "depths" in fields else _HF_PLAIN
    return {key: size for key, size in sizes.items() if _alike(fields.get(key), size)}


def _alike(theirs: Any, ours: Any) -> bool:
    if isinstance(theirs, list) and isinstance(ours, list):
        return len(theirs) == len(ours)
    return isinstance(theirs, int) and isinstance(ours, int)
