"""Rows of plain vision transformers: four maps from every third block of ViT-B/16, BEiT-B/16 and DINOv2-S/14."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vitdense.backbones.options import evenly_spaced
from vitdense.benchmarking.rows import Device, Goal, Peer, Row
from vitdense.benchmarking.suite.maps import MapsWork

BUILT = "Ours and the peers are built for this size of picture: nobody resizes a table of positions in the step."
NOTES = (
    BUILT,
    "timm's features_only=True calls forward_intermediates, which is what is measured here, with the final norm.",
    "transformers keeps all hidden states, and gives them without the final norm.",
)


@dataclass(frozen=True)
class ViTSize:
    """A ViT whose tables of positions are for pictures of `side`; `indices` are the blocks that give the maps."""

    side: int
    patch: int
    embed_dim: int
    depth: int
    num_heads: int

    @property
    def indices(self) -> list[int]:
        """The last of each quarter of the blocks."""
        return list(evenly_spaced(self.depth))

    def options(self) -> dict[str, Any]:
        """As options of ours."""
        return {"image_size": self.side, "patch_size": self.patch, **self.timm_options()}

    def timm_options(self) -> dict[str, Any]:
        """As timm spells them, besides img_size and patch_size."""
        return {"embed_dim": self.embed_dim, "depth": self.depth, "num_heads": self.num_heads}

    def transformers_options(self) -> dict[str, Any]:
        """As transformers spells them."""
        return {
            "image_size": self.side,
            "patch_size": self.patch,
            "hidden_size": self.embed_dim,
            "num_hidden_layers": self.depth,
            "num_attention_heads": self.num_heads,
            "intermediate_size": 4 * self.embed_dim,
        }


CLIP = "clip_base_patch16"  # open_clip has a norm before the first block, and no bias on patches
BASE = ViTSize(512, 16, 768, 12, 12)
SMALL_14 = ViTSize(518, 14, 384, 12, 6)
TINY = ViTSize(64, 16, 48, 4, 3)
TINY_14 = ViTSize(56, 14, 48, 4, 3)


def _timm(name: str, size: ViTSize) -> nn.Module:
    import timm

    options = {"img_size": size.side, "patch_size": size.patch, **size.timm_options()}
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **options)
    return model


def _timm_maps(network: Any, images: Tensor) -> list[Tensor]:
    indices = list(evenly_spaced(len(network.blocks)))
    maps: list[Tensor] = network.forward_intermediates(images, indices=indices, norm=True, intermediates_only=True)
    return maps


def _timm_vit(size: ViTSize) -> nn.Module:
    return _timm("vit_base_patch16_224", size)


def _timm_beit(size: ViTSize) -> nn.Module:
    return _timm("beit_base_patch16_224", size)


def _timm_dinov2(size: ViTSize) -> nn.Module:
    return _timm("vit_small_patch14_dinov2", size)


def _transformers_vit(size: ViTSize) -> nn.Module:
    from transformers import ViTConfig, ViTModel

    model: nn.Module = ViTModel(ViTConfig(**size.transformers_options()), add_pooling_layer=False)
    return model


def _transformers_vit_maps(network: Any, images: Tensor) -> list[Tensor]:
    states = network(images, output_hidden_states=True).hidden_states
    grid = tuple(side // network.config.patch_size for side in images.shape[-2:])
    indices = evenly_spaced(len(states) - 1)
    return [states[i + 1][:, 1:].mT.reshape(images.shape[0], -1, *grid) for i in indices]  # (B, C, h, w)


def _transformers_dinov2(size: ViTSize) -> nn.Module:
    from transformers import Dinov2Backbone, Dinov2Config

    places = [i + 1 for i in size.indices]
    config = Dinov2Config(**size.transformers_options(), out_indices=places)  # type: ignore[call-arg]
    model: nn.Module = Dinov2Backbone(config)
    return model


def _transformers_beit(size: ViTSize) -> nn.Module:
    from transformers import BeitBackbone, BeitConfig

    config = BeitConfig(  # type: ignore[call-arg]  # out_indices is a property, which their stubs leave out
        **size.transformers_options(),
        out_indices=[i + 1 for i in size.indices],
        use_relative_position_bias=True,
        drop_path_rate=0.0,
    )
    model: nn.Module = BeitBackbone(config)
    return model


def _feature_maps(network: Any, images: Tensor) -> list[Tensor]:
    return list(network(images).feature_maps)


def _open_clip(size: ViTSize) -> nn.Module:
    from open_clip.transformer import VisionTransformer

    model: nn.Module = VisionTransformer(
        image_size=size.side,
        patch_size=size.patch,
        width=size.embed_dim,
        layers=size.depth,
        heads=size.num_heads,
        mlp_ratio=4.0,
        output_dim=512,
    )
    return model


def _open_clip_maps(network: Any, images: Tensor) -> list[Tensor]:
    indices = list(evenly_spaced(len(network.transformer.resblocks)))
    out = network.forward_intermediates(images, indices=indices, normalize_intermediates=True, intermediates_only=True)
    maps: list[Tensor] = out["image_intermediates"]
    return maps


def _vit_row(name: str, summary: str, *, train: bool, goals: dict[Device, Goal]) -> Row:
    work = MapsWork("vit_base_patch16", BASE, TINY, train)
    peers = (
        work.against("timm", "timm", _timm_vit, _timm_maps),
        work.against("transformers", "transformers", _transformers_vit, _transformers_vit_maps, {"norm_maps": False}),
        work.against("open_clip", "open_clip", _open_clip, _open_clip_maps, {"activation": "gelu"}, preset=CLIP),
    )
    return Row(name, summary, work.ours, peers, goals, NOTES)


def _beit_peers(work: MapsWork[ViTSize]) -> tuple[Peer, ...]:
    return (
        work.against("timm", "timm", _timm_beit, _timm_maps, {"norm_maps": False}),
        work.against("transformers", "transformers", _transformers_beit, _feature_maps, {"norm_maps": False}),
    )


def _dinov2_peers(work: MapsWork[ViTSize]) -> tuple[Peer, ...]:
    return (
        work.against("timm", "timm", _timm_dinov2, _timm_maps),
        work.against("transformers", "transformers", _transformers_dinov2, _feature_maps),
    )


_BEIT = MapsWork("beit_base_patch16", BASE, TINY, train=False)
_DINOV2 = MapsWork("dinov2_small_patch14", SMALL_14, TINY_14, train=False)

ROWS = (
    _vit_row(
        "vit_b16_forward",
        "ViT-B/16, 512 x 512, 4 maps, inference",
        train=False,
        goals={"cpu": Goal(0.95, 0.75), "cuda": Goal(0.85, 0.80)},
    ),
    _vit_row(
        "vit_b16_train",
        "ViT-B/16, 512 x 512, 4 maps, forward and backward",
        train=True,
        goals={"cpu": Goal(0.95, 0.75), "cuda": Goal(0.85, 0.70)},
    ),
    Row(
        "beit_b16_forward",
        "BEiT-B/16, 512 x 512, 4 maps, inference",
        _BEIT.ours,
        _beit_peers(_BEIT),
        notes=(BUILT, "Ours is timed with its norm on the maps; both peers give them without."),
    ),
    Row(
        "dinov2_s14_forward",
        "DINOv2-S/14, 518 x 518, 4 maps, inference",
        _DINOV2.ours,
        _dinov2_peers(_DINOV2),
        notes=(BUILT,),
    ),
)
