"""A Deformable DETR small enough for tests, and what it reads."""

from typing import Any

import torch
from torch import Tensor, nn

from vitdense.contracts import Batch, Level, Target

LEVELS = (Level(6, 8), Level(8, 16), Level(10, 32))
REFINE, TWO_STAGE = {"with_box_refine": True}, {"with_box_refine": True, "two_stage": True}
KINDS: list[dict[str, bool]] = [{}, REFINE, TWO_STAGE]
CLASSES, QUERIES = 7, 9
TINY: dict[str, Any] = {
    "channels": 32,
    "num_heads": 4,
    "mlp_channels": 24,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "num_queries": QUERIES,
    "dropout": 0.0,
    "encoder_points": 3,
    "decoder_points": 2,
}


def maps(height: int, width: int, dtype: torch.dtype = torch.float32, levels: Any = LEVELS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    sizes = [(2, each.channels, -(-height // each.stride), -(-width // each.stride)) for each in levels]
    return [torch.randn(*size, generator=generator, dtype=dtype) for size in sizes]


def randomise(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            if tensor.ndim > 1:
                tensor.normal_(std=tensor[0].numel() ** -0.5, generator=generator)
            else:
                tensor.normal_(mean=float(name.endswith("weight")), std=0.3, generator=generator)


def a_batch(size: tuple[int, int], extents: Any, dtype: torch.dtype) -> Batch:
    batch: Batch = {"images": torch.zeros(2, 3, *size, dtype=dtype), "sizes": [size] * 2}
    if extents is not None:
        batch["extents"] = torch.tensor(extents)
    frames = extents or (size, size)
    generator = torch.Generator().manual_seed(5)
    targets: list[Target] = []
    for (height, width), count in zip(frames, (3, 2), strict=True):
        x = (torch.rand(count, 2, generator=generator, dtype=dtype) * width).sort(-1).values
        y = (torch.rand(count, 2, generator=generator, dtype=dtype) * height).sort(-1).values
        boxes = torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], dim=-1)
        targets.append({"boxes": boxes, "labels": torch.randint(0, CLASSES, (count,), generator=generator)})
    batch["targets"] = targets
    return batch
