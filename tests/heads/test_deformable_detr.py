"""Deformable DETR against transformers' with the same weights: outputs, losses, gradients; and what it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, ResNetConfig
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher, DeformableDetrImageLoss

from heads import create_head
from tests.heads.tiny_deformable_detr import (
    CLASSES,
    KINDS,
    LEVELS,
    QUERIES,
    TINY,
    TWO_STAGE,
    a_batch,
    maps,
    randomise,
)
from vitdense.contracts import Batch, Head
from vitdense.weights.whole.deformable_detr import renamed

Config: Any = DeformableDetrConfig  # typed by their fields, which are not all they take
Criterion: Any = DeformableDetrImageLoss
ResNet: Any = ResNetConfig
TOLERANCES = [(torch.float32, 1e-5), (torch.float64, 1e-9)]
SIZES = [((64, 96), None), ((75, 109), None), ((75, 109), ((75, 80), (50, 109)))]


class Given(nn.Module):
    """Stands where the reference's backbone stood: maps, with the mask at their size."""

    def __init__(self, maps: list[Tensor]) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, pixels: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(each, F.interpolate(mask[None].float(), size=each.shape[-2:])[0].bool()) for each in self.maps]


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
