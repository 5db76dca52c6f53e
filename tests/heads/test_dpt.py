"""DPT against transformers' neck and heads, at sizes that don't divide, and the mistakes it names."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DPTConfig
from transformers.models.dpt.modeling_dpt import (
    DPTAuxiliaryHead,
    DPTDepthEstimationHead,
    DPTNeck,
    DPTSemanticSegmentationHead,
)

from heads import create_head
from vitdense.contracts import Batch, Head, Level
from vitdense.errors import UserError

LEVELS = (Level(6, 4), Level(8, 8), Level(10, 16), Level(12, 32))
TOLERANCES = [(torch.float32, 1e-5), (torch.float64, 1e-9)]
NORMED: dict[str, Any] = {"batch_norm": True}
CASES: list[tuple[tuple[int, int], dict[str, Any]]] = [
    ((512, 512), NORMED),
    ((250, 333), {}),
    ((250, 333), NORMED),
    ((250, 333), {"batch_norm": True, "bias": True}),
    ((64, 96), {}),
]
WIDTH = 16


def maps(height: int, width: int, *, batch: int = 1, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    sizes = [(batch, each.channels, -(-height // each.stride), -(-width // each.stride)) for each in LEVELS]
    return [torch.randn(*size, generator=generator, dtype=dtype) for size in sizes]


def whole(features: list[Tensor]) -> list[Tensor]:
    """What the reference is fed: it would stretch maps that are not twice as large as the next coarser ones."""
    rows, columns = features[-1].shape[-2:]
    sizes = [(rows * 2**i, columns * 2**i) for i in reversed(range(len(features)))]
    pads = [(0, wide - f.shape[-1], 0, tall - f.shape[-2]) for f, (tall, wide) in zip(features, sizes, strict=True)]
    return [F.pad(f, pad, mode="replicate") for f, pad in zip(features, pads, strict=True)]


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, in units of the reference's mean size where that is above one."""
    assert ours.shape == theirs.shape
    assert theirs.abs().mean() > 0.1
    assert theirs.std() > 0.1
    return float((ours - theirs).abs().max() / theirs.abs().mean().clamp(min=1))


def randomise(module: nn.Module) -> None:
    """Weights that carry signal, and running statistics that are not 0 and 1."""
    for name, tensor in module.state_dict().items():
        if tensor.ndim > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5)
        elif tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if name.endswith(("weight", "running_var")) else tensor.normal_(std=0.5)


class Reference(nn.Module):
    """transformers' neck behind its reassembling, and its heads, under the names of its whole models."""

    def __init__(
        self, kind: str, *, batch_norm: bool = False, bias: bool | None = None, projection: bool = False
    ) -> None:
        super().__init__()
        config = DPTConfig(
            neck_hidden_sizes=[level.channels for level in LEVELS],
            fusion_hidden_size=WIDTH,
            use_batch_norm_in_fusion_residual=batch_norm,
            use_bias_in_fusion_residual=bias,
            add_projection=projection,
        )
        config.num_labels = 7
        self.neck: Any = DPTNeck(config)
        self.neck.reassemble_stage = None
        self.head: Any = (DPTDepthEstimationHead if kind == "dpt_depth" else DPTSemanticSegmentationHead)(config)
        self.auxiliary_head = DPTAuxiliaryHead(config) if kind == "dpt" else None
        if projection:
            # transformers' is for 256 channels, whatever there are.
            self.head.projection = nn.Conv2d(WIDTH, WIDTH, kernel_size=3, padding=1)


def pair(kind: str, dtype: torch.dtype, **options: Any) -> tuple[Head, Reference]:
    torch.manual_seed(0)
    reference = Reference(kind, **options).to(dtype)
    randomise(reference)
    if kind == "dpt_depth":
        reference.head.head[4].bias.data.fill_(3.0)  # so that the last ReLU lets most of it through
    classes = 7 if kind == "dpt" else None
    head = create_head(kind, LEVELS, num_classes=classes, channels=WIDTH, **options).to(dtype)
    unused = "neck.fusion_stage.layers.0.residual_layer1."
    head.load_state_dict({k: v for k, v in reference.state_dict().items() if not k.startswith(unused)})
    return head.eval(), reference.eval()


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "bound"), TOLERANCES)
@pytest.mark.parametrize(("size", "options"), CASES, ids=str)
def test_segmentation_equals_transformers(
    size: tuple[int, int], options: dict[str, Any], dtype: torch.dtype, bound: float
) -> None:
    head, reference = pair("dpt", dtype, **options)
    features = maps(*size, dtype=dtype)
    batch: Batch = {"images": torch.zeros(1, 3, *size)}
    fused = reference.neck(whole(features))
    expected = reference.head(fused)[..., : size[0], : size[1]]
    assert apart(head(features, batch)["logits"], expected) < bound
    auxiliary: Any = head.auxiliary_head
    given = auxiliary(head.neck(features))  # type: ignore[operator]
    assert reference.auxiliary_head is not None
    assert apart(given, reference.auxiliary_head(fused[-1])) < bound


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "bound"), TOLERANCES)
@pytest.mark.parametrize(("size", "options"), [*CASES, ((250, 333), {"projection": True})], ids=str)
def test_depth_equals_transformers(
    size: tuple[int, int], options: dict[str, Any], dtype: torch.dtype, bound: float
) -> None:
    head, reference = pair("dpt_depth", dtype, **options)
    features = maps(*size, dtype=dtype)
    batch: Batch = {"images": torch.zeros(1, 3, *size)}
    expected = reference.head(reference.neck(whole(features)))[:, None, : size[0], : size[1]]
    assert apart(head(features, batch)["depth"], expected) < bound


def test_gradients_equal_those_of_transformers() -> None:
    head, reference = pair("dpt_depth", torch.float64)
    features = maps(64, 96, dtype=torch.float64)
    head(features, {})["depth"].square().mean().backward()
    reference.head(reference.neck(features)).square().mean().backward()
    for name, parameter in head.named_parameters():
        torch.testing.assert_close(parameter.grad, reference.get_parameter(name).grad, rtol=1e-9, atol=1e-9)


def test_a_change_in_one_cell_shows_at_its_place_on_every_level() -> None:
    """Also where levels don't have sizes of ratio two, 21 and 11 for example."""
    head, _ = pair("dpt_depth", torch.float64)
    features = maps(330, 330, dtype=torch.float64)
    batch: Batch = {"images": torch.zeros(1, 3, 330, 330)}
    with torch.no_grad():
        before = head(features, batch)["depth"]
        for i, level in enumerate(LEVELS):
            touched = [each.clone() for each in features]
            cell = touched[i].shape[-1] - 3
            touched[i][..., cell] += 50 * torch.randn(level.channels, touched[i].shape[-2], dtype=torch.float64)
            change = (head(touched, batch)["depth"] - before).abs().sum((0, 1, 2))
            centre = float((change * (torch.arange(330) + 0.5)).sum() / change.sum())
            assert math.isclose(centre, (cell + 0.5) * level.stride, abs_tol=max(level.stride, 12))


@pytest.mark.parametrize("kind", ["dpt", "dpt_depth"])
def test_every_parameter_is_trained(kind: str) -> None:
    head = create_head(kind, LEVELS, num_classes=5 if kind == "dpt" else None, channels=8, batch_norm=True)
    batch: Batch = {"images": torch.zeros(2, 3, 50, 67)}
    batch["masks"] = torch.randint(-1, 5, (2, 50, 67))
    batch["depth"] = torch.rand(2, 50, 67) * 9 + 0.5
    losses = head.losses(head(maps(50, 67, batch=2), batch), batch)
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert [name for name, parameter in head.named_parameters() if parameter.grad is None] == []


def test_a_hybrid_of_other_strides_is_taken() -> None:
    levels = (Level(6, 4), Level(8, 16))
    head = create_head("dpt_depth", levels, channels=8)
    features = [torch.randn(1, 6, 13, 17), torch.randn(1, 8, 4, 5)]
    assert head(features, {"images": torch.zeros(1, 3, 50, 67)})["depth"].shape == (1, 1, 50, 67)


def test_sigmoid_gives_a_share_of_the_largest_depth() -> None:
    head = create_head("dpt_depth", LEVELS, channels=8, activation="sigmoid", max_depth=80.0).eval()
    randomise(head)
    depth = head(maps(64, 96), {})["depth"]
    assert 0 < depth.min() < depth.max() < 80
    torch.testing.assert_close(head.head(head.neck(maps(64, 96))) * 80, depth)  # type: ignore[operator]


def lean_batch(height: int, width: int) -> Batch:
    generator = torch.Generator().manual_seed(4)
    masks = torch.randint(-1, 7, (2, height, width), generator=generator)
    return {"images": torch.zeros(2, 3, height, width), "masks": masks, "sizes": [(height, width)] * 2}


@pytest.mark.parametrize("losses", [{"cross_entropy": 1.0}, {"cross_entropy": 1.0, "boundary": 1.0}], ids=str)
@pytest.mark.parametrize("size", [(64, 96), (50, 67)], ids=str)
def test_a_lean_batch_learns_the_same(size: tuple[int, int], losses: dict[str, float]) -> None:
    head, _ = pair("dpt", torch.float64)
    loaded = head.state_dict()
    head = create_head("dpt", LEVELS, num_classes=7, channels=WIDTH, dropout=0.0, losses=losses).double()
    head.load_state_dict(loaded)
    head.auxiliary_head.head[3].p = 0.0  # type: ignore[union-attr,index]
    batch, grown = lean_batch(*size), []
    for lean in (False, True):
        features = [each.requires_grad_() for each in maps(*size, batch=2, dtype=torch.float64)]
        outputs = head(features, {**batch, "lean": lean})
        assert ("coarse_logits" in outputs) == lean
        found = head.losses(outputs, batch)
        gradients = torch.autograd.grad(torch.stack(list(found.values())).sum(), [*features, *head.parameters()])
        grown.append([*found.values(), *gradients])
    torch.testing.assert_close(*grown, rtol=1e-9, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (50, 67)], ids=str)
def test_a_lean_batch_is_predicted_the_same(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the classifier takes its channels in pieces."""
    head, _ = pair("dpt", torch.float64)
    batch, features = lean_batch(*size), maps(*size, batch=2, dtype=torch.float64)
    expected = head.predict(head(features, batch), batch)
    assert all(len(each.unique()) > 2 for each in expected)
    for pieces in (1, 4):
        monkeypatch.setattr("heads.dpt.FEWEST", WIDTH // pieces)
        monkeypatch.setattr("heads.dpt.NUMBERS", 0)
        outputs = head(features, {**batch, "lean": True})
        assert list(outputs) == ["coarse_logits"]
        for ours, plain in zip(head.predict(outputs, batch), expected, strict=True):
            assert torch.equal(ours, plain)


@pytest.mark.parametrize("kind", ["dpt", "dpt_depth"])
def test_runs_as_one_exported_graph_of_any_size(kind: str) -> None:
    head = create_head(kind, LEVELS, num_classes=5, channels=8).eval()
    batch: Batch = {"images": torch.zeros(1, 3, 50, 67)}
    program = torch.export.export(head, (maps(50, 67), batch))
    expected = head(maps(50, 67), batch)
    for name, value in program.module()(maps(50, 67), batch).items():
        torch.testing.assert_close(value, expected[name])


def test_runs_compiled_as_one_graph() -> None:
    head = create_head("dpt_depth", LEVELS, channels=8).eval()
    compiled: Any = torch.compile(head, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(maps(50, 67), {})["depth"], head(maps(50, 67), {})["depth"])


def test_without_auxiliary_weight_there_is_no_auxiliary_head() -> None:
    head = create_head("dpt", LEVELS, num_classes=5, channels=8, auxiliary_weight=0.0)
    assert not [name for name, _ in head.named_parameters() if name.startswith("auxiliary")]
    assert list(head(maps(50, 67, batch=2), {})) == ["logits"]


def test_plain_maps_are_refused_with_an_adapter_that_helps() -> None:
    with pytest.raises(UserError, match=r"dpt needs a pyramid.*strides \[16, 16\].*adapter: \{name: reassemble\}"):
        create_head("dpt", (Level(8, 16), Level(8, 16)), num_classes=5)
