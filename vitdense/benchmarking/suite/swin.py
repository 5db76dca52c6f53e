"""Rows of Swin-T: four maps of a 512 x 512 picture, forward and as a training step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vitdense.benchmarking.rows import Goal, Row
from vitdense.benchmarking.suite.maps import MapsWork

NOTES = (
    "timm rolls before it pads, so that its numbers at 512 differ from everybody else's by design: ours is compared to"
    ' it with window_order "roll_pad", to the others with the default, and timed in the default.',
    "Ours is timed with its norms on the maps, as transformers is; timm and torchvision give the maps without.",
)


@dataclass(frozen=True)
class SwinSize:
    """A Swin with windows of 7 and patches of 4."""

    side: int
    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]

    def options(self) -> dict[str, Any]:
        """As options of ours."""
        return {"embed_dim": self.embed_dim, "depths": self.depths, "num_heads": self.num_heads}


SWIN_T = SwinSize(512, 96, (2, 2, 6, 2), (3, 6, 12, 24))
# Maps of 58, 29, 15 and 8 cells: a window divides none of them, and all are larger than one.
TINY = SwinSize(232, 16, (2, 2, 2, 2), (1, 2, 2, 4))


@contextmanager
def _timm_attention(*, fused: bool) -> Iterator[None]:
    """timm fuses the attention of a plain ViT by itself, that of Swin where it is asked to while it builds."""
    from timm.layers.config import set_fused_attn, use_fused_attn

    before = use_fused_attn(), use_fused_attn(experimental=True)
    set_fused_attn(True, experimental=fused)
    try:
        yield
    finally:
        set_fused_attn(before[0], experimental=before[1])


def _timm(size: SwinSize, *, fused: bool = False) -> nn.Module:
    import timm

    with _timm_attention(fused=fused):
        model: nn.Module = timm.create_model(
            "swin_tiny_patch4_window7_224",
            pretrained=False,
            features_only=True,
            img_size=size.side,
            drop_path_rate=0.0,
            **size.options(),
        )
    return model


def _timm_fused(size: SwinSize) -> nn.Module:
    return _timm(size, fused=True)


def _transformers(size: SwinSize) -> nn.Module:
    from transformers import SwinBackbone, SwinConfig

    config = SwinConfig(  # type: ignore[call-arg]  # out_features is a property, which their stubs leave out
        image_size=size.side,
        embed_dim=size.embed_dim,
        depths=list(size.depths),
        num_heads=list(size.num_heads),
        out_features=["stage1", "stage2", "stage3", "stage4"],
        drop_path_rate=0.0,
    )
    model: nn.Module = SwinBackbone(config)
    return model


def _torchvision(size: SwinSize) -> nn.Module:
    from torchvision.models.swin_transformer import SwinTransformer

    model: nn.Module = SwinTransformer(
        [4, 4], size.embed_dim, list(size.depths), list(size.num_heads), [7, 7], stochastic_depth_prob=0.0
    )
    return model


def _timm_maps(network: Any, images: Tensor) -> list[Tensor]:
    return [each.permute(0, 3, 1, 2) for each in network(images)]  # (B, C, H, W)


def _transformers_maps(network: Any, images: Tensor) -> list[Tensor]:
    return list(network(images).feature_maps)


def _torchvision_maps(network: Any, images: Tensor) -> list[Tensor]:
    """What hooks on the stages, features 1, 3, 5 and 7, would see, without the classifier behind them."""
    maps, x = [], images
    for i, part in enumerate(network.features):
        x = part(x)  # (B, H, W, C)
        if i % 2:
            maps.append(x.permute(0, 3, 1, 2))  # (B, C, H, W)
    return maps


def _row(name: str, summary: str, *, train: bool, cpu: Goal, cuda: Goal) -> Row:
    work = MapsWork("swin_tiny", SWIN_T, TINY, train)
    rolled = {"norm_maps": False, "window_order": "roll_pad"}
    peers = (
        work.against("timm", "timm", _timm, _timm_maps, rolled),
        work.against("timm_fused", "timm", _timm_fused, _timm_maps, rolled),
        work.against("transformers", "transformers", _transformers, _transformers_maps),
        work.against("torchvision", "torchvision", _torchvision, _torchvision_maps, {"norm_maps": False}),
    )
    return Row(name, summary, work.ours, peers, {"cpu": cpu, "cuda": cuda}, NOTES)


ROWS = (
    _row(
        "swin_t_forward",
        "Swin-T, 512 x 512, 4 maps, inference",
        train=False,
        cpu=Goal(0.80, 0.60),
        cuda=Goal(0.50, 0.60),
    ),
    _row(
        "swin_t_train",
        "Swin-T, 512 x 512, 4 maps, forward and backward",
        train=True,
        cpu=Goal(0.80, 0.55),
        cuda=Goal(0.55, 0.50),
    ),
)
