"""The checkpoint that `weights="default"` means for each preset."""

from vitdense.contracts import BACKBONES, BackboneConfig
from vitdense.errors import UserError

PUBLISHED = {
    "vit_tiny_patch16": "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "vit_small_patch8": "timm/vit_small_patch8_224.dino",
    "vit_small_patch16": "timm/vit_small_patch16_224.augreg_in21k_ft_in1k",
    "vit_small_patch32": "timm/vit_small_patch32_224.augreg_in21k_ft_in1k",
    "vit_base_patch8": "timm/vit_base_patch8_224.augreg2_in21k_ft_in1k",
    "vit_base_patch16": "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k",
    "vit_base_patch32": "timm/vit_base_patch32_224.augreg_in21k_ft_in1k",
    "vit_large_patch16": "timm/vit_large_patch16_224.augreg_in21k_ft_in1k",
    "vit_large_patch32": "timm/vit_large_patch32_224.orig_in21k",
    "vit_huge_patch14": "timm/vit_huge_patch14_224.mae",
    "swin_tiny": "timm/swin_tiny_patch4_window7_224.ms_in22k_ft_in1k",
    "swin_small": "timm/swin_small_patch4_window7_224.ms_in22k_ft_in1k",
    "swin_base": "timm/swin_base_patch4_window7_224.ms_in22k_ft_in1k",
    "swin_base_window12": "timm/swin_base_patch4_window12_384.ms_in22k_ft_in1k",
    "swin_large": "timm/swin_large_patch4_window7_224.ms_in22k_ft_in1k",
    "swin_large_window12": "timm/swin_large_patch4_window12_384.ms_in22k_ft_in1k",
}


def published_for(config: BackboneConfig) -> str:
    """The default source of the preset whose structure a config has."""
    for name, source in PUBLISHED.items():
        kind, preset = BACKBONES.find(name)
        structure = kind.model_validate(preset).model_dump(exclude=_FREE)
        if type(config) is kind and config.model_dump(exclude=_FREE) == structure:
            return source
    raise UserError(
        f"no default weights are published for this {type(config).__name__.removesuffix('Config')}; "
        f"there are some for: {', '.join(PUBLISHED)}"
    )


# Options that don't change which published weights fit.
_FREE = {*BackboneConfig.model_fields, "image_size", "pool", "norm_maps", "position_interpolation"} | {
    "position_antialias",
    "layer_norm_eps",
    "window_order",
    "always_shift",
}
