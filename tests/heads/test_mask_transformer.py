"""Mask2Former against transformers' on the same maps: logits, masks, and all losses from the same random points."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from heads import create_head
from tests.precision import default_dtype
from vitdense.contracts import Batch, Detections, Head, Level, Segments, Target
from vitdense.errors import TrainingError, UserError
from vitdense.weights.contents import Checkpoint
from vitdense.weights.whole.mask2former import read

TOLERANCES = [(torch.float32, 1e-5), (torch.float64, 1e-9)]
CHANNELS = (8, 16, 32, 64)
LEVELS = tuple(Level(channels, 4 << i) for i, channels in enumerate(CHANNELS))
CLASSES, WIDTH, QUERIES = 5, 32, 9
STAGES = ["stage1", "stage2", "stage3", "stage4"]
SWIN: Any = {
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 4,
    "out_features": STAGES,
}
Config: Any = Mask2FormerConfig  # typed by its fields, which are not all it takes
Swin: Any = SwinConfig
SMALL: dict[str, Any] = {
    "hidden_dim": WIDTH,
    "feature_size": WIDTH,
    "mask_feature_size": WIDTH,
    "num_attention_heads": 4,
    "encoder_layers": 2,
    "decoder_layers": 5,
    "dim_feedforward": 48,
    "encoder_feedforward_dim": 40,
    "num_queries": QUERIES,
    "num_labels": CLASSES,
    "train_num_points": 60,
}


class Maps(nn.Module):
    """Stands where transformers has its backbone: hands over the maps that it was given."""

    def __init__(self, maps: list[Tensor]) -> None:
        super().__init__()
        self.feature_maps = maps

    def forward(self, images: Tensor) -> "Maps":
        return self


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, in units of the reference's mean size where that is above one."""
    assert ours.shape == theirs.shape
    return float(((ours - theirs).abs().max() / theirs.abs().mean().clamp(min=1)).detach())


def randomise(module: nn.Module) -> None:
    """Weights that carry signal, and attention sharp enough that queries stay apart."""
    torch.manual_seed(5)
    for name, tensor in module.named_parameters():
        if tensor.ndim > 1:
            gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
            tensor.data.normal_(
                std=1.0 if "quer" in name or "level_embed" in name else gain * tensor[0].numel() ** -0.5
            )
        else:
            norm = name.endswith("norm.weight") or name.endswith(".1.weight")
            tensor.data.uniform_(0.5, 1.5) if norm else tensor.data.normal_(std=0.3)


def maps_of(height: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    sizes = [(2, each.channels, -(-height // each.stride), -(-width // each.stride)) for each in LEVELS]
    return [torch.randn(*size, generator=generator, dtype=dtype) for size in sizes]


def batch_of(height: int, width: int, counts: tuple[int, ...] = (4, 2)) -> Batch:
    generator = torch.Generator().manual_seed(4)
    targets = [
        Target(
            labels=torch.randint(CLASSES, (count,), generator=generator),
            masks=nn.functional.interpolate(torch.rand(count, 1, 4, 5, generator=generator), (height, width))[:, 0]
            > 0.6,
        )
        for count in counts
    ]
    return {"images": torch.empty(len(counts), 3, height, width), "targets": targets}


def pair_of(maps: list[Tensor], dtype: torch.dtype, **options: Any) -> tuple[Any, Head]:
    """transformers' model behind given maps, and ours with its weights."""
    theirs: Any = Mask2FormerForUniversalSegmentation(Config(backbone_config=Swin(**SWIN), **{**SMALL, **options}))
    randomise(theirs)
    whole = read(Checkpoint(theirs.state_dict(), "here", theirs.config.to_dict()))
    ours = create_head("mask_transformer", LEVELS, **whole.head.options)
    ours.load_state_dict(whole.head.state)
    theirs.model.pixel_level_module.encoder = Maps(maps)
    return theirs.to(dtype), ours.to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize(
    "options", [{}, {"feature_size": 64, "mask_feature_size": 24, "enforce_input_projection": True}]
)
def test_logits_and_masks_are_those_of_transformers(dtype: torch.dtype, tolerance: float, options: Any) -> None:
    maps = maps_of(75, 98, dtype)
    theirs, ours = pair_of(maps, dtype, **options)
    batch = batch_of(75, 98)
    with torch.no_grad():
        expected = theirs.eval()(batch["images"].to(dtype))
        outputs = ours.eval()(maps, batch)
    assert expected.masks_queries_logits.std() > 0.5
    assert apart(outputs["logits"], expected.class_queries_logits) < tolerance
    assert apart(outputs["masks"], expected.masks_queries_logits) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("counts", [(4, 2), (12, 1)])
def test_losses_and_gradients_are_those_of_transformers(
    dtype: torch.dtype, tolerance: float, counts: tuple[int, ...]
) -> None:
    maps = [each.requires_grad_() for each in maps_of(64, 96, dtype)]
    theirs, ours = pair_of(maps, dtype)
    batch = batch_of(64, 96, counts)
    labels = [target["labels"] for target in batch["targets"]]
    masks = [target["masks"].to(dtype) for target in batch["targets"]]
    # transformers draws its points in the default type, whatever the masks are.
    with default_dtype(dtype):
        torch.manual_seed(11)
        expected = theirs.train()(batch["images"].to(dtype), masks, labels).loss
        wanted = torch.autograd.grad(expected, maps)
        torch.manual_seed(11)
        losses = ours.train().losses(ours(maps, batch), batch)
    assert len(losses) == 3 * 5
    total = torch.stack(list(losses.values())).sum()
    assert apart(total, expected) < tolerance
    for found, true in zip(torch.autograd.grad(total, maps), wanted, strict=True):
        assert float((found - true).abs().max() / true.abs().max()) < tolerance * 10


def test_each_loss_is_that_of_transformers() -> None:
    maps = maps_of(64, 96, torch.float64)
    theirs, ours = pair_of(maps, torch.float64)
    batch = batch_of(64, 96)
    with default_dtype(torch.float64):
        torch.manual_seed(12)
        out = theirs.train()(batch["images"].double(), output_auxiliary_logits=True)
        expected = theirs.get_loss_dict(
            out.masks_queries_logits,
            out.class_queries_logits,
            [target["masks"].double() for target in batch["targets"]],
            [target["labels"] for target in batch["targets"]],
            out.auxiliary_logits,
        )
        torch.manual_seed(12)
        losses = ours.train().losses(ours(maps, batch), batch)
    names = {name.replace("cross_entropy", "ce"): value for name, value in expected.items()}
    assert names.keys() == losses.keys()
    for name, value in losses.items():
        assert apart(value, names[name]) < 1e-9, name


def test_a_batch_without_targets_teaches_that_there_is_nothing() -> None:
    maps = [each.requires_grad_() for each in maps_of(64, 64, torch.float32)]
    _, ours = pair_of(maps, torch.float32)
    batch = batch_of(64, 64, (0, 0))
    losses = ours.train().losses(ours(maps, batch), batch)
    assert losses["loss_mask"] == losses["loss_dice"] == 0
    assert losses["loss_ce"] > 0
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in ours.parameters())


def test_each_class_of_a_map_is_a_target() -> None:
    maps = maps_of(64, 64, torch.float32)
    _, ours = pair_of(maps, torch.float32)
    classes = torch.full((2, 64, 64), -1)
    classes[0, :20], classes[0, 30:], classes[1, 5:9] = 3, 0, 4
    masks = torch.stack([classes[0] == 0, classes[0] == 3])
    targets = [
        Target(labels=torch.tensor([0, 3]), masks=masks),
        Target(labels=torch.tensor([4]), masks=classes[1:] == 4),
    ]
    images = torch.empty(2, 3, 64, 64)
    found = []
    batches: list[Batch] = [{"images": images, "masks": classes}, {"images": images, "targets": targets}]
    for batch in batches:
        torch.manual_seed(1)
        found.append(ours.train().losses(ours(maps, batch), batch))
    assert found[0] == found[1]


def results_of(task: str, **options: Any) -> tuple[Any, Head, dict[str, Tensor], Batch]:
    head = create_head(
        "mask_transformer", LEVELS, num_classes=3, task=task, channels=32, pixel_channels=32, num_heads=4, **options
    )
    masks = torch.full((1, 3, 4, 4), -9.0)
    masks[0, 0, :2], masks[0, 1, 2:, :2], masks[0, 2, 2:, 2:] = 9.0, 9.0, 9.0
    logits = torch.full((1, 3, 4), -9.0)
    logits[0, 0, 2], logits[0, 1, 0], logits[0, 2, 2] = 9.0, 9.0, 9.0
    batch: Batch = {"images": torch.empty(1, 3, 16, 16), "sizes": [(4, 4)]}
    outputs = {"logits": logits, "masks": masks}
    return head.predict(outputs, batch)[0], head, outputs, batch


def test_stuff_becomes_one_segment_and_things_stay_apart() -> None:
    found, *_ = results_of("panoptic", stuff=(2,))
    assert isinstance(found, Segments)
    assert found.labels.tolist() == [2, 0]
    assert found.ids.tolist() == [[1] * 4, [1] * 4, [2, 2, 1, 1], [2, 2, 1, 1]]
    assert found.classes()[3].tolist() == [0, 0, 2, 2]
    apart, *_ = results_of("panoptic")
    assert apart.ids[3].tolist() == [2, 2, 3, 3]


def test_instances_have_boxes_around_their_masks() -> None:
    found, *_ = results_of("instance", max_detections=3)
    assert isinstance(found, Detections)
    assert found.masks is not None
    boxes = {(int(label), *box) for label, box in zip(found.labels, found.boxes.int().tolist(), strict=True)}
    assert boxes == {(2, 0, 0, 4, 2), (0, 0, 2, 2, 4), (2, 2, 2, 4, 4)}
    assert found.masks.sum((1, 2)).sort().values.tolist() == [4, 4, 8]


def test_classes_of_pixels_are_those_of_the_strongest_masks() -> None:
    found, head, outputs, batch = results_of("semantic")
    assert found.tolist() == [[2] * 4, [2] * 4, [0, 0, 2, 2], [0, 0, 2, 2]]
    scores = {"scores": head.answer(outputs["logits"], torch.eye(3)[None], outputs["masks"], batch)["scores"]}  # type: ignore[operator]
    assert torch.equal(head.predict(scores, batch)[0], found)


def test_what_no_query_is_sure_of_is_nothing() -> None:
    _, head, outputs, batch = results_of("panoptic")
    found = head.predict({**outputs, "logits": torch.zeros(1, 3, 4)}, batch)[0]
    assert len(found) == 0
    assert not found.ids.any()


def test_users_mistakes_are_told() -> None:
    with pytest.raises(UserError, match=r"strides \[16, 16, 16\].*simple_pyramid"):
        create_head("mask_transformer", (Level(8, 16),) * 3, num_classes=2)
    with pytest.raises(UserError, match="set input_projection: true"):
        create_head("mask_transformer", LEVELS, num_classes=2, channels=32)
    with pytest.raises(UserError, match=r"stuff names class 7; there are classes 0\.\.4"):
        create_head("mask_transformer", LEVELS, num_classes=5, stuff=(7,))
    maps = maps_of(64, 64, torch.float32)
    _, ours = pair_of(maps, torch.float32)
    batch = batch_of(64, 64)
    outputs = ours.train()(maps, batch)
    targets = [{**each, "labels": torch.tensor([1, 9])} for each in batch_of(64, 64, (2, 2))["targets"]]
    with pytest.raises(UserError, match="labels reach from 1 to 9, for 5 classes"):
        ours.losses(outputs, {**batch, "targets": targets})  # type: ignore[typeddict-item]
    with pytest.raises(UserError, match="the targets of picture 0 have only labels"):
        ours.losses(outputs, {**batch, "targets": [{"labels": torch.tensor([1])}] * 2})
    outputs["layer_logits"][:, 1] = torch.nan
    with pytest.raises(TrainingError, match="picture 1 of the batch: scores or masks"):
        ours.losses(outputs, batch)
