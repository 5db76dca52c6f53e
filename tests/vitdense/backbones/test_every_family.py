"""One backbone of each family, compiled, exported, under autocast and recomputed: equal to plain eager mode."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitdense.backbones import VideoViTConfig
from vitdense.contracts import BACKBONES, Backbone, BackboneConfig

Shrink = Callable[[str], BackboneConfig]

FAMILIES = (
    "vit_small_patch16",
    "deit_small_distilled_patch16",
    "deit3_small_patch16",
    "beit_base_patch16",
    "dinov2_small_patch14",
    "dinov2_giant_patch14_reg",
    "dinov3_small_plus_patch16",
    "eva02_base_patch14",
    "vitdet_base_patch16",
    "sam_base_patch16",
    "clip_base_patch32",
    "siglip_base_patch16",
    "vit_nano_r_s16",
    "swin_nano",
    "swinv2_nano",
)


def enlivened(backbone: Backbone) -> Backbone:
    """Fresh weights hide faults: biases are zero and layer scales tiny."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            centre = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.12 * torch.randn(parameter.shape, generator=generator))
    return backbone


def shallow(config: BackboneConfig) -> BackboneConfig:
    """Two blocks say as much about tracing as four, in half of the time."""
    less: dict[str, Any] = {"depths": (2, 1, 1, 1)} if "depths" in type(config).model_fields else {"depth": 2}
    if "global_blocks" in type(config).model_fields and config.model_dump()["global_blocks"]:
        less["global_blocks"] = (1,)
    return config.model_copy(update=less)


def test_all_families_are_here() -> None:
    def family(name: str) -> str:
        return name.partition("_")[0].removesuffix("2" if name.startswith(("siglip2", "beitv2")) else "")

    known = {family(name) for name in FAMILIES}
    pictures = [name for name in BACKBONES.names() if not issubclass(BACKBONES.find(name)[0], VideoViTConfig)]
    assert {family(name).removesuffix("v") for name in pictures} <= known | {"beit"}


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_one_graph_gives_eager_numbers(name: str, shrink: Shrink) -> None:
    backbone = enlivened(shallow(shrink(name)).build()).eval()
    torch.compiler.reset()
    compiled: Any = torch.compile(backbone, fullgraph=True, backend="eager")
    images = torch.randn(2, 3, 75, 98)
    torch.testing.assert_close(compiled(images), backbone(images), atol=1e-5, rtol=1e-5)


def test_one_graph_gives_eager_gradients(shrink: Shrink) -> None:
    for name in ("vit_small_patch16", "swin_nano"):
        backbone = enlivened(shallow(shrink(name)).build())
        torch.compiler.reset()
        compiled: Any = torch.compile(backbone, fullgraph=True, backend="aot_eager")
        images = torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(gradients(compiled, backbone, images), gradients(backbone, backbone, images))


def gradients(run: Any, backbone: nn.Module, images: Tensor) -> list[Tensor]:
    wanted = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    loss = torch.stack([each.square().mean() for each in run(images)]).sum()
    given = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [torch.zeros(()) if each is None else each for each in given]


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_an_exported_backbone_takes_other_batches_and_sizes(name: str, shrink: Shrink) -> None:
    backbone = enlivened(shallow(shrink(name)).build()).eval()
    free = torch.export.Dim.DYNAMIC
    example = torch.randn(2, 3, 120, 160)
    exported = torch.export.export(backbone, (example,), dynamic_shapes=({0: free, 2: free, 3: free},))
    for batch, *size in ((2, 120, 160), (3, 130, 150), (1, 224, 170)):
        images = torch.randn(batch, 3, *size)
        torch.testing.assert_close(exported.module()(images), backbone(images), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_autocast_stays_near(name: str, shrink: Shrink) -> None:
    """bfloat16 has 8 bits: a few hundredths of the maps' size after four blocks."""
    backbone = enlivened(shrink(name).build()).eval()
    images = torch.randn(2, 3, 75, 98)
    with torch.autocast("cpu", torch.bfloat16):
        rough = backbone(images)
    for each, exact in zip(rough, backbone(images), strict=True):
        error = (each.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
        assert error < 0.05, f"{error:.3f}"


@pytest.mark.parametrize("name", FAMILIES)
def test_recomputing_gives_equal_gradients(name: str, shrink: Shrink) -> None:
    images, found = torch.randn(2, 3, 40, 56, dtype=torch.float64), []
    for again in (False, True):
        torch.manual_seed(0)
        config = shrink(name).model_copy(update={"grad_checkpointing": again, "drop_path": 0.3})
        backbone = enlivened(config.build()).double()
        torch.manual_seed(1)
        found.append(gradients(backbone, backbone, images))
    torch.testing.assert_close(found[0], found[1])
