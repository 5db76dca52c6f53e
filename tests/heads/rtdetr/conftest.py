"""Tiny detectors of transformers on given maps, ours with their weights, and the same batch for both."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from heads import create_head
from heads.detection.boxes import to_centres
from vitdense.contracts import Batch, Level

CHANNELS, STRIDES, CLASSES = (8, 12, 16), (8, 16, 32), 5
LEVELS = tuple(Level(channels, stride) for channels, stride in zip(CHANNELS, STRIDES, strict=True))
SIZES: dict[str, Any] = {
    "encoder_hidden_dim": 24,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 28,
    "decoder_layers": 3,
    "num_queries": 12,
    "normalize_before": False,
}
COUNTERS = "num_batches_tracked"


class Given(nn.Module):
    """In the place of a backbone: maps that were set."""

    maps: list[Tensor]

    def forward(self, images: Tensor, mask: Tensor) -> list[tuple[Tensor, None]]:
        return [(each, None) for each in self.maps]


def alive(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights that carry a signal through every layer, and statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith((".up", ".reg_scale")):
                continue
            matrix = parameter.ndim in (2, 4) and name.endswith("weight")
            deviation = parameter[0].numel() ** -0.5 if matrix else 0.12
            # Points that jump over cells, and boxes near 0 and 1, would magnify what was rounded before them.
            if "sampling_offsets" in name or ("bbox" in name and ".layers.2." in name):
                deviation /= 4
            centre = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            parameter.copy_(centre + deviation * torch.randn(parameter.shape, generator=generator))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.12 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return module


def reference(name: str, **options: Any) -> Any:
    """Their model of given maps."""
    import transformers

    kinds: dict[str, tuple[Any, Any]] = {
        "rtdetr": (transformers.RTDetrV2Config, transformers.RTDetrV2ForObjectDetection),
        "dfine": (transformers.DFineConfig, transformers.DFineForObjectDetection),
    }
    small: Any = {"embedding_size": 8, "hidden_sizes": [8, *CHANNELS], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    small["out_indices"] = [2, 3, 4]
    backbone = transformers.RTDetrResNetConfig(**small)
    made, kind = kinds[name]
    sizes = SIZES | {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "d_model": 32, "num_denoising": 0}
    sizes |= {"encoder_in_channels": list(CHANNELS), "decoder_in_channels": [SIZES["encoder_hidden_dim"]] * 3}
    config = made(backbone_config=backbone, num_labels=CLASSES, **{**sizes, **options})
    # scaled_dot_product_attention on a CPU reads their single mask wrongly where the rest is double.
    config._attn_implementation = "eager"
    model: Any = alive(kind(config))
    model.model.backbone = Given()
    return model


def our_key(key: str) -> str:
    """Our name of a parameter: as in their files, where those and their models differ."""
    name = f"selection.{key}" if key.startswith("enc_") else key
    if "coder.layers." in name or ".aifi." in name:
        name = name.replace("mlp.layers.0.", "mlp.fc1.").replace("mlp.layers.1.", "mlp.fc2.")
    return name


def ours_of(name: str, theirs: Any, levels: tuple[Level, ...] = LEVELS, **options: Any) -> Any:
    """Our head with their weights."""
    sizes = SIZES | {"encoder_heads": 4, "decoder_heads": 4, "hidden_dim": 32, "denoising": {"queries": 0}}
    head = create_head(name, levels, num_classes=CLASSES, **{**sizes, **options})
    state = {}
    for key, tensor in theirs.model.state_dict().items():
        if not key.startswith("backbone.") and not key.endswith(("_points_scale", "decoder.up", "decoder.reg_scale")):
            state[our_key(key)] = tensor
    head.load_state_dict(state)
    head.to(next(theirs.parameters()).dtype)
    return head.train(theirs.training)


def maps_of(height: int, width: int, dtype: torch.dtype, levels: tuple[Level, ...] = LEVELS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randn(2, level.channels, -(-height // level.stride), -(-width // level.stride), generator=generator).to(
            dtype
        )
        for level in levels
    ]


def batch_of(height: int, width: int, dtype: torch.dtype) -> tuple[Batch, list[dict[str, Tensor]]]:
    """Three things in the first picture and one in the second; for them and for us."""
    shares = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.3, 0.1, 0.9, 0.4], [0.6, 0.5, 0.8, 0.9], [0.2, 0.3, 0.7, 0.8]])
    shares, labels = shares.to(dtype), torch.tensor([1, 4, 0, 2])
    sides = torch.tensor([width, height, width, height], dtype=dtype)
    parts = [slice(0, 3), slice(3, 4)]
    batch: Batch = {
        "images": torch.zeros(2, 3, height, width),
        "ids": ["a", "b"],
        "targets": [{"boxes": shares[part] * sides, "labels": labels[part]} for part in parts],
    }
    return batch, [{"class_labels": labels[part], "boxes": to_centres(shares[part])} for part in parts]


@pytest.fixture
def make_reference() -> Callable[..., Any]:
    return reference


@pytest.fixture
def make_ours() -> Callable[..., Any]:
    return ours_of


@pytest.fixture
def named_as_ours() -> Callable[[str], str]:
    return our_key


@pytest.fixture
def make_maps() -> Callable[..., list[Tensor]]:
    return maps_of


@pytest.fixture
def make_batch() -> Callable[..., tuple[Batch, list[dict[str, Tensor]]]]:
    return batch_of


@pytest.fixture
def cut_after_doubling(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, list[tuple[int, int]]], None]:
    """transformers doubles a coarse map whatever the next one's size is; this cuts it, level by level."""

    def patch(module: Any, sizes: list[tuple[int, int]]) -> None:
        class Cutting:
            def __getattr__(self, name: str) -> Any:
                return getattr(torch.nn.functional, name)

            def interpolate(self, maps: Tensor, **options: Any) -> Tensor:
                height, width = sizes.pop(0)
                return torch.nn.functional.interpolate(maps, **options)[..., :height, :width]

        monkeypatch.setattr(module, "F", Cutting())

    return patch
