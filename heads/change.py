"""Change detection: the maps of two pictures of one place, fused level by level, under any segmentation head (siamese
networks of Daudt et al. 2018, https://arxiv.org/abs/1810.08462)."""

from typing import Literal, Self

import torch
from torch import Tensor, nn

from heads.frames import without_time
from heads.named import NamedHead
from vitdense.contracts import HEADS, Batch, Head, HeadConfig, Level, Outputs, Predictions
from vitdense.errors import UserError


@HEADS.register("change")
class ChangeConfig(HeadConfig):
    """`head` is one with classes by pixel, such as upernet or segformer, on the maps that `fuse` makes of those of the
    two pictures: their absolute `difference`, which doesn't tell before from after, both joined and brought back to the
    channels of one by a 1x1 convolution (`concat`), or so with the difference as a third (`both`).
    """

    head: NamedHead
    fuse: Literal["difference", "concat", "both"] = "difference"

    def reads_all(self) -> bool:
        """As the head inside."""
        return self.head.reads_all()

    def for_classes(self, count: int) -> Self:
        """The head inside for so many."""
        return self.model_copy(update={"num_classes": count, "head": self.head.for_classes(count)})

    def build(self, levels: tuple[Level, ...]) -> "Change":
        """For levels of single frames; UserError for others, and where the head inside gives no classes by pixel."""
        if any(level.time_stride != 1 for level in levels):
            found = [level.time_stride for level in levels]
            raise UserError(
                f"head change needs the maps of each picture of a pair, got time strides {found}: "
                "take the backbone per_frame/NAME"
            )
        return Change(self, levels)


class Change(Head):
    """Pairs (B, C, 2, H, W), before and after -> the outputs of the head inside, one (B, K, h, w) for both pictures."""

    compares = True

    def __init__(self, config: ChangeConfig, levels: tuple[Level, ...]) -> None:
        super().__init__()
        head = config.head.build(without_time(levels, "change"))
        if head.dense not in ("logits", "scores") or head.reads != "maps":
            raise UserError(
                f"head change needs a head with classes by pixel, such as upernet; {type(head).__name__} gives none, "
                "or not as it is set up (mask_transformer: task: semantic)"
            )
        self.head = head
        self.fusions = nn.ModuleList(FUSIONS[config.fuse](level.channels) for level in levels)
        self.num_classes, self.dense = head.num_classes, head.dense

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """features: (B, C_i, 2, h_i, w_i) -> the outputs of the head inside on fused maps (B, C_i, h_i, w_i)."""
        frames = features[0].shape[2]
        if frames != 2:
            raise UserError(f"head change compares two pictures, (B, C, 2, H, W), got clips of {frames} frames")
        fused = [fuse(each[:, :, 0], each[:, :, 1]) for fuse, each in zip(self.fusions, features, strict=True)]
        outputs: Outputs = self.head(fused, as_pictures(batch))
        return outputs

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Those of the head inside, of batch["masks"] (B, H, W): one mask for each pair."""
        return self.head.losses(outputs, as_pictures(batch))

    def predict(self, outputs: Outputs, batch: Batch) -> Predictions:
        """One (H, W) tensor of class indices for each pair."""
        return self.head.predict(outputs, as_pictures(batch))

    def no_decay(self) -> set[str]:
        """Those of the head inside, under their names here."""
        return {f"head.{name}" for name in self.head.no_decay()}

    def deploy(self, outputs: Outputs, size: tuple[int, int]) -> Outputs:
        """As the head inside."""
        return self.head.deploy(outputs, size)


class Difference(nn.Module):
    """Where two maps differ, whichever comes first."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """before, after: (B, C, h, w) -> (B, C, h, w)."""
        return (before - after).abs()


class Concat(nn.Module):
    """Two maps joined, and one of as many channels as each made of them."""

    parts = 2

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(self.parts * channels, channels, kernel_size=1)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """before, after: (B, C, h, w) -> (B, C, h, w)."""
        fused: Tensor = self.projection(torch.cat([before, after], dim=1))
        return fused


class Both(Concat):
    """The same with their absolute difference as a third."""

    parts = 3

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """before, after: (B, C, h, w) -> (B, C, h, w)."""
        fused: Tensor = self.projection(torch.cat([before, after, (before - after).abs()], dim=1))
        return fused


FUSIONS: dict[str, type[Difference] | type[Concat]] = {"difference": Difference, "concat": Concat, "both": Both}


def as_pictures(batch: Batch) -> Batch:
    """Pairs (B, C, 2, H, W) -> a batch of pictures (B, C, H, W) of their size, for heads that look at no more."""
    return {**batch, "images": batch["images"][:, :, 0]} if "images" in batch else batch
