"""DPT: convolutional fusion of four levels from coarse to fine, for segmentation and depth (Ranftl et al. 2021,
https://arxiv.org/abs/2103.13413); parameters are named as in transformers' DPT."""

from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from heads.depth import DepthConfig, DepthHead, cut_to_picture
from heads.fusion import FusionConfig, FusionNeck, check_levels, enlarge
from heads.losses.cross_entropy import CrossEntropyConfig
from heads.segmentation import SegmentationConfig, SegmentationHead, check_masks, classifier
from vitdense.contracts import HEADS, IGNORE, Batch, Level, Outputs, Predictions
from vitdense.layers.eager import is_bare
from vitdense.layers.folding import conv_and_norm, folded, folds
from vitdense.ops.fusion import conv_of_resized
from vitdense.ops.upsampled_argmax import upsampled_argmax

NUMBERS, FEWEST = 2**22, 32
"""About how many numbers, and at least how many channels, stand between a classifier's convolutions in inference."""


@HEADS.register("dpt")
class DPTConfig(SegmentationConfig, FusionConfig):
    """DPT for segmentation; `auxiliary_weight: 0` leaves the auxiliary head out."""

    auxiliary_weight: NonNegativeFloat = 0.4

    def build(self, levels: tuple[Level, ...]) -> "DPT":
        """A DPT for a pyramid; raises UserError for anything else."""
        return DPT(self, levels)


@HEADS.register("dpt_depth")
class DPTDepthConfig(DepthConfig, FusionConfig):
    """DPT for depth. `activation` relu gives metres as they come, sigmoid a share of `max_depth`, as metric
    DepthAnything; `projection` is a convolution more."""

    head_channels: PositiveInt = 32
    projection: bool = False
    activation: Literal["relu", "sigmoid"] = "relu"

    def build(self, levels: tuple[Level, ...]) -> "DPTDepth":
        """A DPT for a pyramid; raises UserError for anything else."""
        return DPTDepth(self, levels)


class DPT(SegmentationHead):
    """Maps of a pyramid -> `logits` at a quarter of the finest stride; in training `auxiliary_logits` at half of it."""

    def __init__(self, config: DPTConfig, levels: tuple[Level, ...]) -> None:
        check_levels("dpt", levels)
        super().__init__(config, levels)
        self.auxiliary_weight = config.auxiliary_weight
        self.finest = levels[0].stride
        # What comes out are pixels then, and a lean batch's last resizing is left to losses and predictions.
        self.draws_pixels = self.finest == 4
        self.by_pixel = all(type(loss) is CrossEntropyConfig for loss in self.chosen_losses)
        self.neck = FusionNeck(config, levels)
        self.head = PixelClassifier(config.channels, self.num_classes, dropout=config.dropout)
        self.auxiliary_head = None
        if config.auxiliary_weight > 0:
            self.auxiliary_head = PixelClassifier(config.channels, self.num_classes, dropout=0.1)

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """features: (B, C_i, h_i, w_i), finest first -> logits (B, K, 4 h_0, 4 w_0), cut to the picture."""
        fused = self.neck(features, resized=False)
        size = (2 * fused.shape[-2], 2 * fused.shape[-1])
        outputs = {}
        if self.training and self.auxiliary_head is not None:
            auxiliary = self.auxiliary_head(fused, size)
            outputs["auxiliary_logits"] = cut_to_picture(auxiliary, features[0], batch, stride=self.finest, finer=2)
        coarse = self.head(fused, size)
        del fused  # without a backward pass nobody needs it any more
        if self.draws_pixels and batch.get("lean", False):
            return {"coarse_logits": coarse, **outputs}
        logits = enlarge(coarse, (2 * size[0], 2 * size[1]))
        return {"logits": cut_to_picture(logits, features[0], batch, stride=self.finest, finer=4), **outputs}

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """As of every head; of `coarse_logits` too, which a lean batch leaves at half of the size."""
        if "coarse_logits" not in outputs:
            return super().losses(outputs, batch)
        coarse = outputs["coarse_logits"]
        masks = check_masks(coarse, batch)
        whole = (2 * coarse.shape[-2], 2 * coarse.shape[-1])
        if not self.by_pixel:
            logits = enlarge(coarse, whole)[..., : masks.shape[-2], : masks.shape[-1]]
            return super().losses({**outputs, "logits": logits}, batch)
        beyond = (0, whole[1] - masks.shape[-1], 0, whole[0] - masks.shape[-2])
        losses = self._losses(coarse, F.pad(masks, beyond, value=IGNORE), align_corners=True)
        return self._with_auxiliary(losses, outputs, masks)

    def predict(self, outputs: Outputs, batch: Batch) -> Predictions:
        """As of every head; of `coarse_logits` the last resizing is never held."""
        if "coarse_logits" not in outputs:
            return super().predict(outputs, batch)
        coarse, sizes = outputs["coarse_logits"], batch["sizes"]
        assert len(sizes) == len(coarse), f"{len(sizes)} sizes for {len(coarse)} pictures"
        whole = (2 * coarse.shape[-2], 2 * coarse.shape[-1])
        return [
            upsampled_argmax(each[None], whole, align_corners=True)[0, :height, :width]
            for each, (height, width) in zip(coarse, sizes, strict=True)
        ]


class DPTDepth(DepthHead):
    """Maps of a pyramid -> `depth` at a quarter of the finest stride."""

    def __init__(self, config: DPTDepthConfig, levels: tuple[Level, ...]) -> None:
        check_levels("dpt_depth", levels)
        super().__init__(config, levels)
        self.finest = levels[0].stride
        self.neck = FusionNeck(config, levels)
        self.head = DepthTail(config)
        self.scale = config.max_depth if config.activation == "sigmoid" else 1.0

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """features: (B, C_i, h_i, w_i), finest first -> depth (B, 1, 4 h_0, 4 w_0), cut to the picture."""
        fused = self.neck(features, resized=False)
        size = (2 * fused.shape[-2], 2 * fused.shape[-1])
        depth = self.head(fused, size) * self.scale
        return {"depth": cut_to_picture(depth, features[0], batch, stride=self.finest, finer=4)}


class PixelClassifier(nn.Module):
    """A 3 x 3 convolution, batch norm, ReLU, and a classifier."""

    def __init__(self, channels: int, num_classes: int, *, dropout: float) -> None:
        super().__init__()
        self.head = nn.Sequential(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Dropout(dropout),
            classifier(channels, num_classes),
        )

    def forward(self, maps: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """maps: (B, C, h, w) -> logits (B, K, h, w); of the maps resized, (B, K, *size)."""
        conv, norm, _, dropout, classes = self.head
        if size is not None and self._is_lean(maps):
            return self._in_pieces(maps, size)
        hidden = conv_of_enlarged(maps, conv, norm, size).relu_()
        logits: Tensor = classes(dropout(hidden))
        return logits

    def _is_lean(self, maps: Tensor) -> bool:
        """Whether nothing lies between the two convolutions that needs all channels, or is kept."""
        conv, norm, _, dropout, classes = self.head
        assert isinstance(conv, nn.Conv2d)
        return (
            not torch.is_grad_enabled()
            and folds(maps, conv, norm)
            and not dropout.training
            and is_bare(nn.Conv2d, classes)
            and not torch.is_autocast_enabled(maps.device.type)
        )

    def _in_pieces(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """As `forward`, some channels of what lies between the convolutions at a time."""
        conv, norm, _, _, classes = self.head
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(classes, nn.Conv2d)
        assert classes.bias is not None
        weight, bias = folded(conv, norm)
        logits = classes.bias[:, None].expand(len(maps), -1, size[0] * size[1]).contiguous()  # (B, K, H * W)
        at_once = max(FEWEST, NUMBERS // (len(maps) * size[0] * size[1]))
        for some in torch.split(torch.arange(len(weight), device="cpu"), at_once):
            chosen = slice(int(some[0]), int(some[-1]) + 1)
            hidden = conv_of_resized([maps], weight[chosen], bias[chosen], size=size, align_corners=True).relu_()
            logits.baddbmm_(classes.weight[:, chosen, 0, 0].expand(len(maps), -1, -1), hidden.flatten(2))
            del hidden
        return torch.unflatten(logits, 2, size)  # (B, K, H, W)


class DepthTail(nn.Module):
    """Convolutions to one value for each cell, twice as fine; never below 0."""

    def __init__(self, config: DPTDepthConfig) -> None:
        super().__init__()
        width = config.channels
        self.projection = nn.Conv2d(width, width, kernel_size=3, padding=1) if config.projection else None
        last = nn.Conv2d(config.head_channels, 1, kernel_size=1)
        assert last.bias is not None
        if config.activation == "relu":
            # Where a ReLU gives 0 nothing is learned: training starts from a depth that is above it.
            nn.init.ones_(last.bias)
        self.head = nn.Sequential(
            nn.Conv2d(width, width // 2, kernel_size=3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            nn.Conv2d(width // 2, config.head_channels, kernel_size=3, padding=1),
            nn.ReLU(),
            last,
            nn.ReLU() if config.activation == "relu" else nn.Sigmoid(),
        )
        self.no_norm = nn.Identity()

    def forward(self, maps: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """maps: (B, C, h, w) -> (B, 1, 2 h, 2 w); of the maps resized, twice `size`."""
        if self.projection is not None:
            maps, size = conv_of_enlarged(maps, self.projection, self.no_norm, size).relu_(), None
        first, _, second, _, last, activation = self.head
        maps = conv_of_enlarged(maps, first, self.no_norm, size)
        size = (2 * maps.shape[-2], 2 * maps.shape[-1])
        depth: Tensor = activation(last(conv_of_enlarged(maps, second, self.no_norm, size).relu_()))
        return depth


def conv_of_enlarged(maps: Tensor, conv: nn.Module, norm: nn.Module, size: tuple[int, int] | None) -> Tensor:
    """maps: (B, C, h, w), resized to `size`, if there is one -> (B, C_out, *size), a tensor that may be written to."""
    assert isinstance(conv, nn.Conv2d)
    if size is None:
        return conv_and_norm(maps, conv, norm)
    if not is_bare(nn.Conv2d, conv):
        return conv_and_norm(enlarge(maps, size), conv, norm)
    is_folded = folds(maps, conv, norm)
    weight, bias = folded(conv, norm) if is_folded else (conv.weight, conv.bias)
    out = conv_of_resized([maps], weight, bias, size=size, align_corners=True, padding=conv.kernel_size[0] // 2)
    return out if is_folded else norm(out)
