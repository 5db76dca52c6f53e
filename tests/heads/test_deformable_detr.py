"""Deformable DETR against transformers' with the same weights: outputs, losses, gradients; and what it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, ResNetConfig
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher, DeformableDetrImageLoss

from heads import create_head
from vitdense.contracts import Batch, Head, Level, Target
from vitdense.errors import UserError
from vitdense.weights.whole.deformable_detr import renamed

Config: Any = DeformableDetrConfig  # typed by their fields, which are not all they take
Criterion: Any = DeformableDetrImageLoss
ResNet: Any = ResNetConfig
LEVELS = (Level(6, 8), Level(8, 16), Level(10, 32))
TOLERANCES = [(torch.float32, 1e-5), (torch.float64, 1e-9)]
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
SIZES = [((64, 96), None), ((75, 109), None), ((75, 109), ((75, 80), (50, 109)))]


class Given(nn.Module):
    """Stands where the reference's backbone stood: maps, with the mask at their size."""

    def __init__(self, maps: list[Tensor]) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, pixels: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(each, F.interpolate(mask[None].float(), size=each.shape[-2:])[0].bool()) for each in self.maps]


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


def reference(dtype: torch.dtype, **kind: bool) -> Any:
    stages: Any = {"embedding_size": 4, "hidden_sizes": [4, 6, 8, 10], "depths": [1, 1, 1, 1]}
    config = Config(
        backbone_config=ResNet(**stages, out_features=["stage2", "stage3", "stage4"]),
        d_model=32,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        encoder_layers=2,
        decoder_layers=3,
        encoder_n_points=3,
        decoder_n_points=2,
        num_queries=QUERIES,
        two_stage_num_proposals=QUERIES,
        num_labels=CLASSES,
        dropout=0.0,
        auxiliary_loss=True,
        **kind,
    )
    model: Any = DeformableDetrForObjectDetection(config)
    randomise(model)
    return model.to(dtype)


def pair(dtype: torch.dtype, **kind: bool) -> tuple[Head, Any]:
    """Ours and transformers', with the same weights that carry a signal, in training mode."""
    theirs = reference(dtype, **kind)
    costs = {"matcher": {"label": 1.0, "box": 5.0, "giou": 2.0}, "label_weight": 1.0}
    ours = create_head("deformable_detr", LEVELS, num_classes=CLASSES, **TINY, **costs, **kind).to(dtype)
    state = renamed({key: each for key, each in theirs.state_dict().items() if "backbone" not in key})
    ours.load_state_dict({key: state[key] for key in ours.state_dict()})
    return ours.train(), theirs.train()


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


def in_shares(batch: Batch) -> list[dict[str, Tensor]]:
    """The targets as transformers wants them."""
    size = batch["images"].shape[-2:]
    found = []
    for index, target in enumerate(batch["targets"]):
        height, width = batch["extents"][index].tolist() if "extents" in batch else size
        x0, y0, x1, y1 = (target["boxes"] / target["boxes"].new_tensor([width, height] * 2)).unbind(-1)
        boxes = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], dim=-1)
        found.append({"class_labels": target["labels"], "boxes": boxes})
    return found


def run(theirs: Any, features: list[Tensor], batch: Batch) -> Any:
    mask = torch.zeros(2, *batch["images"].shape[-2:], dtype=torch.long)
    for index in range(2):
        height, width = batch["extents"][index].tolist() if "extents" in batch else mask.shape[1:]
        mask[index, :height, :width] = 1
    theirs.model.backbone = Given(features)
    return theirs(batch["images"], pixel_mask=mask, labels=in_shares(batch))


def equal(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    assert theirs.std() > 0.01, "the reference carries no signal"
    torch.testing.assert_close(ours, theirs, atol=tolerance * max(1.0, float(theirs.abs().mean())), rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize(("size", "extents"), SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_outputs_losses_and_gradients_equal_transformers(
    kind: dict[str, bool], size: tuple[int, int], extents: Any, dtype: torch.dtype, tolerance: float
) -> None:
    ours, theirs = pair(dtype, **kind)
    batch = a_batch(size, extents, dtype)
    own, other = ([each.requires_grad_() for each in maps(*size, dtype)] for _ in range(2))
    found, expected = ours(own, batch), run(theirs, other, batch)
    equal(found["logits"], expected.logits, tolerance)
    equal(found["boxes_cxcywh"], expected.pred_boxes, tolerance)
    losses = {key: each for key, each in ours.losses(found, batch).items() if "_enc" not in key}
    weights = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
    wanted = {
        key: each * weights[key.rstrip("_0123456789")]
        for key, each in expected.loss_dict.items()
        if not key.startswith("cardinality")
    }
    assert losses.keys() == wanted.keys()
    for key, each in losses.items():
        torch.testing.assert_close(each, wanted[key], atol=tolerance * 10, rtol=tolerance)
    total = torch.stack(list(losses.values())).sum()
    torch.testing.assert_close(total, expected.loss, atol=0, rtol=tolerance)
    for one, two in zip(torch.autograd.grad(total, own), torch.autograd.grad(expected.loss, other), strict=True):
        torch.testing.assert_close(one, two, atol=tolerance * 10 * float(two.abs().max()), rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_evaluation_gives_the_last_layer_alone(kind: dict[str, bool]) -> None:
    ours, _ = pair(torch.float64, **kind)
    batch, features = a_batch((75, 109), None, torch.float64), maps(75, 109, torch.float64)
    whole, last = ours(features, batch), ours.eval()(features, batch)
    assert list(last) == ["logits", "boxes_cxcywh"]
    for name, each in last.items():
        torch.testing.assert_close(each, whole[name], atol=1e-12, rtol=0)
    (found, _) = ours.predict(last, batch)
    assert len(found) == QUERIES * CLASSES
    assert (found.boxes[:, 2:] <= torch.tensor([109.0, 75.0])).all()


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("extents", [None, ((75, 80), (50, 109))], ids=str)
def test_losses_of_the_first_stage_are_those_of_one_class(dtype: torch.dtype, tolerance: float, extents: Any) -> None:
    """transformers gives these outputs and no longer learns from them: its criterion, called as the authors do."""
    ours, theirs = pair(dtype, **TWO_STAGE)
    batch, features = a_batch((75, 109), extents, dtype), maps(75, 109, dtype)
    found, expected = ours(features, batch), run_model(theirs, features, batch)
    kept = expected.enc_outputs_coord_logits.isfinite()
    equal(found["proposal_logits"], expected.enc_outputs_class, tolerance)
    boxes = expected.enc_outputs_coord_logits.sigmoid()
    torch.testing.assert_close(found["proposal_boxes"], boxes, atol=tolerance, rtol=0)
    assert kept.any()
    assert (~kept).any() == (extents is not None)
    matcher = DeformableDetrHungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    criterion = Criterion(matcher, CLASSES, 0.25, ["labels", "boxes"])
    targets = [{**each, "class_labels": torch.zeros_like(each["class_labels"])} for each in in_shares(batch)]
    wanted = criterion({"logits": expected.enc_outputs_class, "pred_boxes": boxes}, targets)
    losses = ours.losses(found, batch)
    for name, weight in (("loss_ce", 1.0), ("loss_bbox", 5.0), ("loss_giou", 2.0)):
        torch.testing.assert_close(losses[f"{name}_enc_0"], weight * wanted[name], atol=0, rtol=tolerance)


def run_model(theirs: Any, features: list[Tensor], batch: Batch) -> Any:
    found: list[Any] = []
    handle = theirs.model.register_forward_hook(lambda _, __, outputs: found.append(outputs))
    run(theirs, features, batch)
    handle.remove()
    return found[0]


NOISE: dict[str, Any] = {"denoising": {"queries": 6}}


@pytest.mark.parametrize("name", ["deformable_detr", "dino"])
@pytest.mark.parametrize("kind", [{}, TWO_STAGE, {**TWO_STAGE, **NOISE}, {**TWO_STAGE, "masks": True}], ids=str)
def test_every_parameter_is_trained_and_every_loss_is_finite(kind: dict[str, Any], name: str) -> None:
    head = create_head(name, LEVELS, num_classes=CLASSES, **{**TINY, **kind})
    batch = a_batch((75, 109), ((75, 80), (50, 109)), torch.float32)
    for target, (height, width) in zip(batch["targets"], batch["extents"].tolist(), strict=True):
        target["masks"] = torch.rand(len(target["labels"]), height, width) < 0.5
    randomise(head)
    losses = head.losses(head(maps(75, 109), batch), batch)
    total = torch.stack(list(losses.values())).sum()
    assert total.isfinite()
    total.backward()  # type: ignore[no-untyped-call]
    idle = [name for name, each in head.named_parameters() if each.grad is None or not each.grad.isfinite().all()]
    assert idle == []


@torch.no_grad()
def test_denoising_queries_change_nothing_for_the_others() -> None:
    head = create_head("deformable_detr", LEVELS, num_classes=CLASSES, **TINY, **TWO_STAGE, **NOISE).double()
    randomise(head)
    batch, features = a_batch((75, 109), None, torch.float64), maps(75, 109, torch.float64)
    noisy, plain = head(features, batch), head(features, {"images": batch["images"]})
    assert noisy["denoising_logits"].shape == (3, 2, 12, CLASSES)  # as often as 6 queries hold 3 targets, twice
    for name, each in plain.items():
        torch.testing.assert_close(noisy[name], each, atol=1e-12, rtol=0)
    losses = head.losses(noisy, batch)
    assert {name for name in losses if "_dn" in name} == {
        f"{kind}_dn_{layer}" for kind in ("loss_ce", "loss_bbox", "loss_giou") for layer in range(3)
    }


@torch.no_grad()
def test_pictures_without_targets_are_learned_from_too() -> None:
    head = create_head("dino", LEVELS, num_classes=CLASSES, **TINY)
    batch = a_batch((75, 109), None, torch.float32)
    batch["targets"] = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}] * 2
    assert all(each.isfinite() for each in head.losses(head(maps(75, 109), batch), batch).values())


@torch.no_grad()
def test_masks_are_given_at_the_pictures_size() -> None:
    head = create_head("deformable_detr", LEVELS, num_classes=CLASSES, **TINY, masks=True).eval()
    batch = a_batch((75, 109), None, torch.float32)
    outputs = head(maps(75, 109), batch)
    assert outputs["masks"].shape == (2, QUERIES, 10, 14)
    assert head.predict(outputs, batch)[0].masks.shape == (QUERIES * CLASSES, 75, 109)


def test_looking_forward_twice_reaches_the_layer_before() -> None:
    reached = []
    for twice in (False, True):
        torch.manual_seed(0)
        options = {**TINY, **REFINE, "look_forward_twice": twice}
        head = create_head("deformable_detr", LEVELS, num_classes=CLASSES, **options).double()
        randomise(head)
        outputs = head(maps(64, 96, torch.float64), {})
        first, last = head.get_parameter("bbox_embed.0.layers.2.bias"), outputs["layer_boxes"][1].sum()
        (gradient,) = torch.autograd.grad(last, first, allow_unused=True)
        reached.append(gradient is not None and bool(gradient.any()))
        reached.append(outputs["layer_boxes"].detach())
    assert reached[0] is False
    assert reached[2] is True
    torch.testing.assert_close(reached[1], reached[3], atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "levels",
    [LEVELS, (Level(6, 4), *LEVELS), (Level(8, 16),), (Level(8, 16),) * 3, (Level(8, 14), Level(9, 28))],
    ids=str,
)
def test_every_choice_of_levels_learns(levels: tuple[Level, ...]) -> None:
    head = create_head("deformable_detr", levels, num_classes=CLASSES, **{**TINY, **TWO_STAGE})
    batch = a_batch((50, 67), None, torch.float32)
    losses = head.losses(head(maps(50, 67, levels=levels), batch), batch)
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert all(each.isfinite() for each in losses.values())


@torch.no_grad()
def test_skipped_levels_are_as_if_they_were_not_there() -> None:
    outputs = []
    for levels, skipped in (((Level(6, 4), *LEVELS), 1), (LEVELS, 0)):
        head = create_head("deformable_detr", levels, num_classes=CLASSES, **TINY, skip_levels=skipped).eval()
        randomise(head)
        features = maps(75, 109)
        outputs.append(head([torch.randn(2, 6, 19, 28)] * skipped + features, {}))
    assert torch.equal(outputs[0]["logits"], outputs[1]["logits"])


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_runs_as_one_exported_and_one_compiled_graph(kind: dict[str, bool]) -> None:
    head = create_head("deformable_detr", LEVELS, num_classes=CLASSES, **TINY, **kind).eval()
    randomise(head)
    batch: Batch = {"images": torch.zeros(2, 3, 50, 67), "extents": torch.tensor([[50, 60], [40, 67]])}
    expected = head(maps(50, 67), batch)
    exported = torch.export.export(head, (maps(50, 67), batch)).module()
    compiled: Any = torch.compile(head, fullgraph=True, backend="eager")
    for run_graph in (exported, compiled):
        for name, value in run_graph(maps(50, 67), batch).items():
            torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-5)


def test_autocast_stays_close() -> None:
    head = create_head("deformable_detr", LEVELS, num_classes=CLASSES, **TINY, **TWO_STAGE)
    batch = a_batch((75, 109), None, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        losses = head.losses(head(maps(75, 109), batch), batch)
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert all(each.isfinite() and each.dtype == torch.float32 for each in losses.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"two_stage": True}, "two_stage needs with_box_refine: true"),
        ({"channels": 48}, "channels 48 must divide by 32"),
        ({"mixed_queries": True}, "mixed_queries needs two_stage: true"),
        (NOISE, "denoising needs two_stage: true"),
        ({"look_forward_twice": True}, "look_forward_twice needs with_box_refine: true"),
        ({"skip_levels": 3}, "skips 3 levels, but there are 3"),
        ({"num_feature_levels": 2}, "num_feature_levels 2, but there are 3 levels"),
    ],
    ids=str,
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_head("deformable_detr", LEVELS, num_classes=CLASSES, **options)
