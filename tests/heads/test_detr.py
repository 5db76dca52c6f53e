"""DETR against transformers' on the same maps: logits, boxes, masks and every loss term."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DetrConfig, DetrForSegmentation
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss, ForSegmentationLoss

from heads import create_head
from tests.precision import default_dtype
from vitdense.contracts import Batch, Detections, Head, Level, Target
from vitdense.errors import UserError

TOLERANCES = [(torch.float32, 1e-5), (torch.float64, 1e-9)]
STRIDES, CHANNELS = (4, 8, 16, 32), (8, 16, 24, 32)
LEVELS = tuple(Level(c, s) for c, s in zip(CHANNELS, STRIDES, strict=True))
CLASSES, WIDTH, HEADS, QUERIES = 5, 128, 8, 12
OPTIONS: dict[str, Any] = {
    "num_classes": CLASSES,
    "num_queries": QUERIES,
    "channels": WIDTH,
    "num_heads": HEADS,
    "mlp_channels": 64,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "dropout": 0.0,
}
# They have no types.
detection_loss: Any = ForObjectDetectionLoss
segmentation_loss: Any = ForSegmentationLoss


class Maps(nn.Module):
    """Stands where transformers has its backbone: hands over the maps that it was given, and a mask for each."""

    def __init__(self, maps: list[Tensor]) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, images: Tensor, pixel_mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        sizes = [each.shape[-2:] for each in self.maps]
        masks = [nn.functional.interpolate(pixel_mask[None].float(), size=size).to(torch.bool)[0] for size in sizes]
        return list(zip(self.maps, masks, strict=True))


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, in units of the reference's mean size where that is above one."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().mean().clamp(min=1))


def randomise(module: nn.Module) -> None:
    """Weights that carry signal, and attention sharp enough that queries stay apart."""
    for name, tensor in module.named_parameters():
        if tensor.ndim > 1:
            gain = 2.0 if name.endswith(("q_proj.weight", "k_proj.weight")) else 1.0
            tensor.data.normal_(std=2.0 if "query_position" in name else gain * tensor[0].numel() ** -0.5)
        else:
            tensor.data.uniform_(0.5, 1.5) if name.endswith("norm.weight") else tensor.data.normal_(std=0.3)


def maps_of(height: int, width: int, *, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    sizes = [(2, each.channels, -(-height // each.stride), -(-width // each.stride)) for each in LEVELS]
    return [torch.randn(*size, generator=generator, dtype=dtype) for size in sizes]


def targets_of(counts: list[int], extents: list[tuple[int, int]], dtype: torch.dtype) -> list[Target]:
    generator = torch.Generator().manual_seed(4)
    found = []
    for count, (height, width) in zip(counts, extents, strict=True):
        corners = torch.rand(count, 2, 2, generator=generator, dtype=dtype).sort(dim=1).values
        corners[:, 1] += 0.02  # so that each has an area
        boxes = corners.clamp(max=1).flatten(1) * torch.tensor([width, height] * 2)
        labels = torch.randint(CLASSES, (count,), generator=generator)
        masks = torch.rand(count, height, width, generator=generator) > 0.6
        found.append(Target(boxes=boxes, labels=labels, masks=masks))
    return found


def labels_of(batch: Batch) -> list[dict[str, Tensor]]:
    """Targets as transformers takes them."""
    height, width = batch["images"].shape[-2:]
    extents = batch["extents"].tolist() if "extents" in batch else [(height, width)] * 2
    labels = []
    for target, (tall, wide) in zip(batch["targets"], extents, strict=True):
        x0, y0, x1, y1 = (target["boxes"] / target["boxes"].new_tensor([wide, tall] * 2)).unbind(-1)
        boxes = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], dim=-1)
        pad = (0, width - target["masks"].shape[-1], 0, height - target["masks"].shape[-2])
        masks = nn.functional.pad(target["masks"], pad)
        labels.append({"class_labels": target["labels"], "boxes": boxes, "masks": masks})
    return labels


def theirs_of(maps: list[Tensor], *, chained: bool) -> Any:
    """transformers' model behind given maps; its own backbone is built small and thrown away."""
    backbone = {"model_type": "resnet", "depths": [1, 1, 1, 1], "hidden_sizes": list(CHANNELS), "embedding_size": 8}
    config: Any = DetrConfig(
        backbone_config={**backbone, "out_features": ["stage1", "stage2", "stage3", "stage4"]},
        d_model=WIDTH,
        num_queries=QUERIES,
        encoder_layers=2,
        decoder_layers=3,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        dropout=0.0,
        auxiliary_loss=chained,
    )
    config.num_labels = CLASSES
    torch.manual_seed(0)
    theirs: Any = DetrForSegmentation(config)
    theirs.detr.model.backbone = Maps(maps)
    randomise(theirs)
    return theirs.to(maps[0].dtype)


def ours_of(theirs: Any, *, masks: bool, chained: bool = False) -> Head:
    head = create_head("detr", LEVELS, **OPTIONS, masks=masks, chained_norm=chained)
    state = {key.removeprefix("detr.").removeprefix("model."): value for key, value in theirs.state_dict().items()}
    if not masks:
        state = {key: value for key, value in state.items() if not key.startswith(("mask_head.", "bbox_attention."))}
    head.load_state_dict(state)
    return head.to(next(theirs.parameters()).dtype)


def batch_of(size: tuple[int, int], counts: list[int], *, padded: bool, dtype: torch.dtype) -> Batch:
    extents = [size, (size[0] - 37, size[1] - 11)] if padded else [size, size]
    batch = Batch(images=torch.zeros(2, 3, *size, dtype=dtype), targets=targets_of(counts, extents, dtype))
    batch["sizes"] = [(50, 70), (61, 43)]
    if padded:
        batch["extents"] = torch.tensor(extents)
    return batch


def pixel_mask(batch: Batch) -> Tensor:
    mask = torch.zeros(2, *batch["images"].shape[-2:], dtype=torch.int64)
    for one, (height, width) in zip(mask, batch.get("extents", torch.tensor([mask.shape[1:]] * 2)), strict=True):
        one[:height, :width] = 1
    return mask


SIZES = [((96, 128), False), ((83, 117), False), ((83, 117), True)]


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "bound"), TOLERANCES)
@pytest.mark.parametrize(("size", "padded"), SIZES)
@pytest.mark.parametrize("chained", [False, True])
def test_outputs_equal_transformers(
    size: tuple[int, int], padded: bool, chained: bool, dtype: torch.dtype, bound: float
) -> None:
    maps, batch = maps_of(*size, dtype=dtype), batch_of(size, [3, 2], padded=padded, dtype=dtype)
    theirs = theirs_of(maps, chained=chained).eval()
    ours = ours_of(theirs, masks=True, chained=chained).eval()
    expected = theirs(batch["images"], pixel_mask=pixel_mask(batch))
    given = ours(maps, batch)
    assert expected.logits.std(dim=1).mean() > 0.1
    assert expected.pred_masks.std() > 0.1
    assert apart(given["logits"], expected.logits) < bound
    assert apart(given["boxes_cxcywh"], expected.pred_boxes) < bound
    assert apart(given["masks"], expected.pred_masks) < bound


@pytest.mark.parametrize(("dtype", "bound"), TOLERANCES)
@pytest.mark.parametrize(("size", "padded"), SIZES)
@pytest.mark.parametrize("counts", [[3, 2], [0, 4], [15, 1]])
def test_losses_and_gradients_equal_transformers(
    size: tuple[int, int], padded: bool, counts: list[int], dtype: torch.dtype, bound: float
) -> None:
    """With auxiliary losses transformers chains its norm, so that this is the option; images without boxes and with
    more than there are queries, too."""
    maps, batch = maps_of(*size, dtype=dtype), batch_of(size, counts, padded=padded, dtype=dtype)
    for each in maps:
        each.requires_grad_()
    theirs = theirs_of(maps, chained=True).train()
    ours = ours_of(theirs, masks=True, chained=True).train()
    # transformers makes the weights of classes in the default type, whatever the logits are.
    with default_dtype(dtype):
        total = theirs(batch["images"], pixel_mask=pixel_mask(batch), labels=labels_of(batch))
    expected = {key: value for key, value in total.loss_dict.items() if not key.startswith("cardinality")}
    given = ours.losses(ours(maps, batch), batch)
    weights = {"loss_bbox": 5.0, "loss_giou": 2.0}
    assert given.keys() == expected.keys()
    for key, value in expected.items():
        weight = weights.get("_".join(key.split("_")[:2]), 1.0)
        assert apart(given[key], weight * value) < bound, key
    sum_of_ours = torch.stack(list(given.values())).sum()
    wanted = torch.autograd.grad(total.loss, maps)
    for mine, other in zip(torch.autograd.grad(sum_of_ours, maps), wanted, strict=True):
        assert other.abs().max() > 1e-5
        assert float((mine - other).abs().max() / other.abs().max()) < 10 * bound


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "bound"), TOLERANCES)
def test_losses_of_unchained_layers_equal_transformers(dtype: torch.dtype, bound: float) -> None:
    """As the authors: each layer's queries are normed for its losses alone; the last layer's masks learn."""
    size = (83, 117)
    maps, batch = maps_of(*size, dtype=dtype), batch_of(size, [3, 2], padded=True, dtype=dtype)
    theirs = theirs_of(maps, chained=False).eval()
    states: list[Tensor] = []
    for layer in theirs.detr.model.decoder.layers:
        layer.register_forward_hook(lambda _module, _inputs, output: states.append(output))
    outputs = theirs(batch["images"], pixel_mask=pixel_mask(batch))
    stack = theirs.detr.model.decoder.layernorm(torch.stack(states))
    theirs.config.auxiliary_loss = True
    layers = (theirs.detr.class_labels_classifier(stack), theirs.detr.bbox_predictor(stack).sigmoid())
    given = (outputs.logits, labels_of(batch), torch.device("cpu"), outputs.pred_boxes)
    with default_dtype(dtype):
        _, expected, _ = segmentation_loss(*given, outputs.pred_masks, theirs.config, *layers)
        _, without, _ = detection_loss(*given, theirs.config, *layers)
    for masks, reference in ((True, expected), (False, without)):
        ours = ours_of(theirs, masks=masks).train()
        losses = ours.losses(ours(maps, batch), batch)
        assert {key for key in reference if not key.startswith("cardinality")} == losses.keys()
        for key, value in losses.items():
            weight = {"loss_bbox": 5.0, "loss_giou": 2.0}.get("_".join(key.split("_")[:2]), 1.0)
            assert apart(value, weight * reference[key]) < bound, key


def test_losses_without_targets_reach_every_parameter() -> None:
    head = create_head("detr", LEVELS, **OPTIONS, masks=True)
    batch = batch_of((64, 64), [0, 0], padded=False, dtype=torch.float32)
    losses = head.losses(head(maps_of(64, 64, dtype=torch.float32), batch), batch)
    assert all(losses[key].item() == 0 for key in ("loss_mask", "loss_dice", "loss_bbox", "loss_giou"))
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@torch.no_grad()
def test_predictions_have_boxes_and_masks_at_the_pictures_size() -> None:
    head = create_head("detr", LEVELS, **OPTIONS, masks=True, max_detections=5).eval()
    randomise(head)
    batch = batch_of((83, 117), [1, 1], padded=True, dtype=torch.float32)
    outputs = head(maps_of(83, 117, dtype=torch.float32), batch)
    found: list[Detections] = head.predict(outputs, batch)
    for index, (each, size) in enumerate(zip(found, batch["sizes"], strict=True)):
        assert len(each) == 5
        assert each.masks is not None
        assert each.masks.shape == (5, *size)
        chances = outputs["logits"][index].softmax(-1)[:, :-1].max(-1).values
        queries = chances.sort(descending=True).indices[:5]
        height, width = batch["extents"][index].tolist()
        part = outputs["masks"][index, queries][None]
        if (height, width) != (83, 117):
            part = nn.functional.interpolate(part, size=(83, 117), mode="bilinear")[..., :height, :width]
        cut = nn.functional.interpolate(part, size=size, mode="bilinear")[0]
        assert torch.equal(each.masks, cut > 0)
        assert 0.05 < each.masks.float().mean() < 0.95


def test_a_map_of_one_level_is_enough_without_masks() -> None:
    level = (Level(8, 16),)
    head = create_head("detr", level, **OPTIONS)
    assert head([torch.randn(2, 8, 3, 4)], Batch(images=torch.zeros(2, 3, 48, 64)))["logits"].shape == (2, 12, 6)
    with pytest.raises(UserError, match="finer"):
        create_head("detr", level, **OPTIONS, masks=True)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="level 4"):
        create_head("detr", LEVELS, **OPTIONS, level=4)
    with pytest.raises(UserError, match="divide by 4"):
        create_head("detr", LEVELS, **{**OPTIONS, "channels": 100})
    with pytest.raises(UserError, match="multiples of 8"):
        create_head("detr", LEVELS, **{**OPTIONS, "channels": 96, "num_heads": 8}, masks=True)


def test_a_few_steps_learn_two_pictures() -> None:
    torch.manual_seed(0)
    options = {**OPTIONS, "num_queries": 6, "channels": 32, "num_heads": 4, "encoder_layers": 1, "decoder_layers": 2}
    head = create_head("detr", LEVELS, **options).train()
    maps = [each.detach() for each in maps_of(64, 64, dtype=torch.float32)]
    batch = batch_of((64, 64), [2, 1], padded=False, dtype=torch.float32)
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3)
    for _ in range(150):
        losses = head.losses(head(maps, batch), batch)
        optimizer.zero_grad()
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
        optimizer.step()
    batch["sizes"] = [(64, 64)] * 2
    with torch.no_grad():
        found: list[Detections] = head.eval().predict(head(maps, batch), batch)
    for each, target in zip(found, batch["targets"], strict=True):
        sure = each[each.scores > 0.5]
        assert sorted(sure.labels.tolist()) == sorted(target["labels"].tolist())
        distances = (sure.boxes[:, None] - target["boxes"][None]).abs().amax(-1)
        assert distances.amin(0).max() < 4
