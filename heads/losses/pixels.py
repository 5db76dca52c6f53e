"""Logits and masks as losses see them: at the head's stride, and at full size where a loss can't do without."""

from torch import Tensor

from vitdense.contracts import IGNORE
from vitdense.ops.resizing import full_precision, resize


class Pixels:
    """logits (B, K, h, w), masks (B, H, W) int64; what several losses need of them at full size is made once.

    `class_weights` (K,) and `label_smoothing` are the head's, and belong to its cross entropies.
    """

    def __init__(
        self,
        logits: Tensor,
        masks: Tensor,
        *,
        align_corners: bool = False,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        self.logits = logits
        self.masks = masks
        self.align_corners = align_corners
        self.class_weights = class_weights
        self.label_smoothing = label_smoothing
        # Not by cached_property, whose lock torch.compile can't look through.
        self._upsampled: Tensor | None = None
        self._probabilities: Tensor | None = None

    @property
    def upsampled(self) -> Tensor:
        """The logits at full size, (B, K, H, W), in float32 or better."""
        if self._upsampled is None:
            size = (self.masks.shape[-2], self.masks.shape[-1])
            self._upsampled = resize(full_precision(self.logits), size, align_corners=self.align_corners)
        return self._upsampled

    @property
    def probabilities(self) -> Tensor:
        """Of the classes at full size, (B, K, H, W)."""
        if self._probabilities is None:
            self._probabilities = self.upsampled.softmax(dim=1)
        return self._probabilities

    @property
    def labelled(self) -> Tensor:
        """Which pixels have a label, (B, H, W)."""
        return self.masks != IGNORE

    @property
    def classes(self) -> Tensor:
        """The masks, (B, H, W), with class 0 where there is no label."""
        return self.masks.clamp_min(0)

    def of_truth(self, values: Tensor) -> Tensor:
        """values (B, K, H, W) -> those of each pixel's own class, (B, H, W)."""
        return values.gather(1, self.classes[:, None])[:, 0]
