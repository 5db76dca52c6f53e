"""The checkpoint that `weights="default"` means for each preset."""

from vitdense.contracts import BackboneConfig
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
    "vit_tiny_r_s16_p8": "timm/vit_tiny_r_s16_p8_224.augreg_in21k_ft_in1k",
    "vit_small_r26_s32": "timm/vit_small_r26_s32_224.augreg_in21k_ft_in1k",
    "vit_base_r50_s16": "timm/vit_base_r50_s16_384.orig_in21k_ft_in1k",
    "vit_large_r50_s32": "timm/vit_large_r50_s32_224.augreg_in21k_ft_in1k",
    "deit_tiny_patch16": "timm/deit_tiny_patch16_224.fb_in1k",
    "deit_small_patch16": "timm/deit_small_patch16_224.fb_in1k",
    "deit_base_patch16": "timm/deit_base_patch16_224.fb_in1k",
    "deit_tiny_distilled_patch16": "timm/deit_tiny_distilled_patch16_224.fb_in1k",
    "deit_small_distilled_patch16": "timm/deit_small_distilled_patch16_224.fb_in1k",
    "deit_base_distilled_patch16": "timm/deit_base_distilled_patch16_224.fb_in1k",
    "deit3_small_patch16": "timm/deit3_small_patch16_224.fb_in22k_ft_in1k",
    "deit3_base_patch16": "timm/deit3_base_patch16_224.fb_in22k_ft_in1k",
    "deit3_large_patch16": "timm/deit3_large_patch16_224.fb_in22k_ft_in1k",
    "deit3_huge_patch14": "timm/deit3_huge_patch14_224.fb_in22k_ft_in1k",
    "swin_tiny": "timm/swin_tiny_patch4_window7_224.ms_in22k_ft_in1k",
    "swin_small": "timm/swin_small_patch4_window7_224.ms_in22k_ft_in1k",
    "swin_base": "timm/swin_base_patch4_window7_224.ms_in22k_ft_in1k",
    "swin_base_window12": "timm/swin_base_patch4_window12_384.ms_in22k_ft_in1k",
    "swin_large": "timm/swin_large_patch4_window7_224.ms_in22k_ft_in1k",
    "swin_large_window12": "timm/swin_large_patch4_window12_384.ms_in22k_ft_in1k",
}


def published_for(config: BackboneConfig) -> str:
    """The default source of the preset that a config was made by."""
    if config.preset in PUBLISHED:
        return PUBLISHED[config.preset]
    raise UserError(f"no default weights are published for {config.preset}; there are some for: {', '.join(PUBLISHED)}")
