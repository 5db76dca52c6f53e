"""The decoders of segmentation-models-pytorch on our levels: `smp/unet`, `smp/fpn`, `smp/deeplabv3plus`, ..."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

from pydantic import Field, JsonValue, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from heads.segmentation import SegmentationConfig, SegmentationHead
from vitdense.contracts import HEADS, Batch, Level, Outputs
from vitdense.errors import UserError

TOKENS = ("dpt",)
"""smp's decoders of tokens, not of maps."""
COARSEST = {"deeplabv3plus": 4}
"""Halvings of the map that a decoder brings to stride 4 by a fixed factor; others take up to 5."""
FOUR = ("fpn", "pan", "upernet", "segformer")
"""Decoders that read each of the last four maps; others go without the finest ones."""
COARSE = ("pspnet", "deeplabv3", "deeplabv3plus")
"""Decoders that leave maps out."""
WIDTHS = {name: (256, 128, 64, 32, 16) for name in ("unet", "unetplusplus", "manet")}
"""smp's `decoder_channels`, one for each halving."""
_ENCODER = "vitdense-levels"


@HEADS.register_family("smp")
class SmpConfig(SegmentationConfig):
    """`options` go to smp's model as they are, such as {decoder_channels: [256, 128, 64, 32, 16]}.

    smp's own heads resize with aligned corners, so that is the default here. `dropout` is for a new classifier's
    input; the decoders' own is one of their `options`. `depth` is how many halvings the decoder sees: left out, as many
    as the coarsest level that it can use has.
    """

    architecture: str
    align_corners: bool = True
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    depth: PositiveInt | None = None
    options: dict[str, JsonValue] = Field(default_factory=dict)

    def reads_all(self) -> bool:
        """All are, unless the decoder works on the coarsest, or on fewer halvings than there are."""
        return self.depth is None and self.architecture not in COARSE

    def build(self, levels: tuple[Level, ...]) -> "Smp":
        """One of smp's decoders for levels of strides 2 .. 32; UserError names what doesn't fit."""
        return Smp(self, levels)


class Smp(SegmentationHead):
    """Maps of strides 2, 4, .. 2**depth, as far as there are any -> `logits` at the decoder's own stride."""

    def __init__(self, config: SmpConfig, levels: tuple[Level, ...]) -> None:
        super().__init__(config, levels)
        self.positions = halvings(levels, config)
        self.strides = [level.stride for level in levels]
        self.largest = 2 ** len(self.positions)
        channels = [0 if at is None else levels[at].channels for at in self.positions]
        model = create(config, [3, *channels])
        self.decoder, self.dropout = model.decoder, nn.Dropout2d(config.dropout)
        # Its upsampling and activation stay out: losses and predictions resize the logits exactly.
        self.classifier = model.segmentation_head[0]

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """features: (B, C_i, h_i, w_i) -> logits (B, K, h, w) at the decoder's stride."""
        # smp's decoders double sizes: maps are padded to those of a picture that the coarsest stride divides.
        finest = min(range(len(features)), key=lambda index: self.strides[index])
        covered = [side * self.strides[finest] for side in features[finest].shape[-2:]]
        height, width = batch["images"].shape[-2:] if "images" in batch else covered
        tall, wide = (-(-side // self.largest) * self.largest for side in (height, width))
        first = features[finest]
        maps = [first.new_empty(len(first), 3, tall, wide)]
        for halved, at in enumerate(self.positions, start=1):
            size = (tall >> halved, wide >> halved)
            maps.append(first.new_empty(len(first), 0, *size) if at is None else padded(features[at], size))
        logits = self.classifier(self.dropout(self.decoder(maps)))
        stride = tall // logits.shape[-2]
        return {"logits": logits[..., : -(-height // stride), : -(-width // stride)]}


class LevelsEncoder(nn.Module):
    """What smp asks of an encoder while it builds a decoder: the channels, and nothing to run."""

    def __init__(self, channels: list[int], depth: int, output_stride: int) -> None:
        super().__init__()
        self.out_channels, self.output_stride = channels, output_stride

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """There is nothing to change."""

    def make_dilated(self, output_stride: int) -> None:
        """Levels are as they are: decoders that would dilate smp's encoders read the coarsest level instead."""


def create(config: SmpConfig, channels: list[int]) -> Any:
    """smp's model for these channels, picture first; its faults come as UserErrors."""
    # Imported here: every look-up of a head imports this file, and smp takes seconds.
    import segmentation_models_pytorch as smp
    from segmentation_models_pytorch.encoders import encoders

    known = sorted(set(smp.MODEL_ARCHITECTURES_MAPPING) - set(TOKENS))
    if config.architecture not in known:
        raise UserError(f"smp has no decoder of maps named {config.architecture!r}; known: {', '.join(known)}")
    parameters = signature(smp.MODEL_ARCHITECTURES_MAPPING[config.architecture]).parameters
    allowed = [name for name in parameters if name.startswith(("decoder_", "psp_"))]
    if unknown := sorted(config.options.keys() - allowed):
        raise UserError(f"smp/{config.architecture} has no options {unknown}; allowed: {', '.join(allowed)}")
    encoders[_ENCODER] = {"encoder": LevelsEncoder, "params": {"channels": channels}, "pretrained_settings": {}}
    depth = len(channels) - 1
    widths = {"decoder_channels": WIDTHS[config.architecture][:depth]} if config.architecture in WIDTHS else {}
    options: Mapping[str, Any] = {"encoder_depth": depth, **widths, **config.options}
    try:
        return smp.create_model(config.architecture, _ENCODER, None, classes=config.num_classes, **options)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"smp/{config.architecture} with options {dict(config.options)}: {error}") from error
    finally:
        del encoders[_ENCODER]


def halvings(levels: tuple[Level, ...], config: SmpConfig) -> list[int | None]:
    """For each stride 2, 4, .. 2**depth the level that has it, or None."""
    at = {level.stride: index for index, level in enumerate(levels)}
    strides = [level.stride for level in levels]
    usable = [stride for stride in at if stride in (2, 4, 8, 16, 32)]
    most = min(max(usable, default=1).bit_length() - 1, COARSEST.get(config.architecture, 5))
    depth = most if config.depth is None else config.depth
    found = [at.get(2**halved) for halved in range(1, depth + 1)]
    needed = (
        range(max(depth - 4, 0), depth)
        if config.architecture in FOUR
        else [1]
        if config.architecture in COARSEST
        else []
    )
    if len(usable) < max(2, len(strides)) or found[-1] is None or any(found[place] is None for place in needed):
        wanted = ", ".join(str(2 ** (place + 1)) for place in sorted({*needed, depth - 1}))
        raise UserError(
            f"smp/{config.architecture} needs a pyramid: levels of different strides among 2, 4, 8, 16, 32, with "
            f"{wanted} among them; got strides {strides}. "
            "An adapter makes one: `adapter: {name: simple_pyramid}` of a plain ViT's maps, reassemble of a hybrid's"
        )
    return found


def padded(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """maps: (B, C, h, w) -> (B, C, H, W), the last row and column repeated at the bottom and right."""
    down, right = size[0] - maps.shape[-2], size[1] - maps.shape[-1]
    return maps if not down and not right else F.pad(maps, (0, right, 0, down), mode="replicate")
