"""What heads share that answer with a class and a mask for each query: targets, matching, losses, and results of all
three kinds (MaskFormer, Cheng et al. 2021, https://arxiv.org/abs/2107.06278)."""

from heads.mask_classification.head import MaskClassificationConfig, MaskClassificationHead

__all__ = ["MaskClassificationConfig", "MaskClassificationHead"]
