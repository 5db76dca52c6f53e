"""Things in pictures of many sizes: padded batches, windows, scales and flips end in the same boxes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.stubs import MapsAlone
from vitdense.contracts import Batch, Detections, Head, Level, Outputs, Predictions
from vitdense.inference import InferenceConfig, infer
from vitdense.inference.detection import suppress
from vitdense.model import Model

COLOURS = ((1.0, 0.0), (0.0, 1.0))  # red things are of class 0, green ones of class 1


class Pixels(MapsAlone):
    """The picture itself, one level."""

    levels = (Level(3, 1),)
    embed_dim = 3

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images]


class Rectangles(Head):
    """Finds the rectangle of each colour; its score is the share of a 20 x 20 square that is seen."""

    num_classes, detects = 2, True

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        return {"pixels": features[0]}

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError

    def predict(self, outputs: Outputs, batch: Batch) -> Predictions:
        pictures, sizes = outputs["pixels"], batch["sizes"]
        extents = batch["extents"].tolist() if "extents" in batch else [pictures.shape[-2:]] * len(pictures)
        return [self._find(*each) for each in zip(pictures, extents, sizes, strict=True)]

    def _find(self, picture: Tensor, extent: Sequence[int], size: tuple[int, int]) -> Detections:
        picture = picture[:, : extent[0], : extent[1]]
        boxes, scores, labels, masks = [], [], [], []
        for label, (red, green) in enumerate(COLOURS):
            inside = (picture[0] - red).abs() + (picture[1] - green).abs() < 0.3
            if not inside.any():
                continue
            rows, columns = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
            scale = torch.tensor([size[1] / extent[1], size[0] / extent[0]] * 2)
            corners = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            boxes.append(torch.stack(corners).float() * scale)
            scores.append(min(float(inside.sum()) / 400, 1.0))
            labels.append(label)
            resized = nn.functional.interpolate(inside[None, None].float(), size=size, mode="nearest-exact")
            masks.append(resized[0, 0] > 0)
        return Detections(
            torch.stack(boxes) if boxes else torch.zeros(0, 4),
            torch.tensor(scores),
            torch.tensor(labels, dtype=torch.int64),
            torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.bool),
        )


@pytest.fixture
def model() -> Model:
    return Model(Pixels(), Rectangles(), classes=("red", "green"), category_ids=(7, 3)).eval()


def scene(height: int, width: int, *boxes: tuple[int, int, int, int]) -> Tensor:
    """(3, H, W) floats, with a red box, then a green one."""
    picture = torch.zeros(3, height, width)
    for (x0, y0, x1, y1), (red, green) in zip(boxes, COLOURS, strict=False):
        picture[0, y0:y1, x0:x1], picture[1, y0:y1, x0:x1] = red, green
    return picture


def boxes_of(found: Detections) -> dict[int, list[float]]:
    assert len(set(found.labels.tolist())) == len(found), "one box for each class"
    return {int(label): box.tolist() for label, box in zip(found.labels, found.boxes, strict=True)}


RED, GREEN = (30, 14, 50, 34), (61, 40, 75, 60)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"short_side": 160},
        {"size": (144, 180)},
        {"flip": True},
        {"scales": (1.0, 2.0)},
        {"mode": "sliding", "window": 40, "stride": 16},
        {"mode": "sliding", "window": 48, "stride": 24, "flip": True, "scales": (1.0, 1.5)},
    ],
)
def test_every_way_of_looking_finds_the_same_boxes(model: Model, options: dict[str, Any]) -> None:
    picture = scene(72, 90, RED, GREEN)
    found = infer(model, {"images": picture[None], "sizes": [(72, 90)]}, InferenceConfig(**options))[0]
    for label, box in boxes_of(found).items():
        assert box == pytest.approx((RED, GREEN)[label], abs=1.5)
        mask = found.masks[found.labels == label][0]
        x0, y0, x1, y1 = (RED, GREEN)[label]
        truth = torch.zeros(72, 90, dtype=torch.bool)
        truth[y0:y1, x0:x1] = True
        assert float((mask & truth).sum() / (mask | truth).sum()) > 0.8
    assert len(found) == 2


def test_boxes_are_in_pixels_of_the_wanted_size(model: Model) -> None:
    picture = scene(72, 90, RED)
    found = infer(model, {"images": picture[None], "sizes": [(144, 270)]}, InferenceConfig())[0]
    assert found.boxes[0].tolist() == [90, 28, 150, 68]


def test_padded_batches_give_what_each_picture_gives_alone(model: Model) -> None:
    pictures = [scene(40, 64, (10, 8, 30, 28)), scene(56, 50, (20, 20, 40, 40), (0, 0, 12, 12))]
    images = torch.full((2, 3, 56, 64), 0.5)
    for image, picture in zip(images, pictures, strict=True):
        image[:, : picture.shape[1], : picture.shape[2]] = picture
    sizes = [(40, 64), (56, 50)]
    batch: Batch = {"images": images, "extents": torch.tensor(sizes), "sizes": sizes}
    together = infer(model, batch, InferenceConfig())
    for picture, found in zip(pictures, together, strict=True):
        size = (picture.shape[1], picture.shape[2])
        alone = infer(model, {"images": picture[None], "sizes": [size]}, InferenceConfig())[0]
        assert torch.equal(found.boxes, alone.boxes)


def test_bytes_beside_resized_pictures_keep_their_brightness(model: Model) -> None:
    pictures = [scene(40, 64, (10, 8, 30, 28)), scene(80, 128, (20, 16, 60, 56))]
    images = torch.zeros(2, 3, 80, 128, dtype=torch.uint8)
    for image, picture in zip(images, pictures, strict=True):
        image[:, : picture.shape[1], : picture.shape[2]] = (picture * 255).byte()
    sizes = [(40, 64), (80, 128)]
    batch: Batch = {"images": images, "extents": torch.tensor(sizes), "sizes": sizes}
    small, large = infer(model, batch, InferenceConfig(short_side=40))
    assert small.boxes[0].tolist() == [10, 8, 30, 28]
    assert large.boxes[0].tolist() == pytest.approx([20, 16, 60, 56], abs=2)


def test_the_model_blanks_padding_after_normalising() -> None:
    class Looks(Pixels):
        mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    model = Model(Looks(), Rectangles())
    batch: Batch = {"images": torch.ones(2, 3, 6, 8), "extents": torch.tensor([[6, 8], [4, 5]])}
    seen = model(batch)["pixels"]
    assert (seen[0] == 1).all()
    assert (seen[1, :, :4, :5] == 1).all()
    assert float(seen[1].sum()) == 3 * 4 * 5


def test_predictions_carry_the_numbers_of_the_data_set(model: Model) -> None:
    picture = (scene(72, 90, RED, GREEN).permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    found = model.predict([picture])[0]
    assert found.labels.tolist() == [0, 1]
    assert torch.equal(found.category_ids, torch.tensor([7, 3]))
    unnamed = Detections(found.boxes, found.scores, found.labels).named(()).category_ids
    assert unnamed is not None
    assert unnamed.tolist() == [0, 1]


def test_nothing_found_is_an_empty_result(model: Model) -> None:
    for mode in ("whole", "sliding"):
        config = InferenceConfig.model_validate({"mode": mode, "window": 32})
        found = infer(model, {"images": torch.zeros(1, 3, 72, 90), "sizes": [(72, 90)]}, config)[0]
        assert (len(found), found.boxes.shape) == (0, (0, 4))


def test_of_two_that_overlap_the_surer_stays_and_other_classes_do_too() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 9, 9], [0, 0, 10, 10], [20, 20, 30, 30]])
    labels = torch.tensor([0, 0, 1, 0])
    assert suppress(boxes, torch.tensor([0.5, 0.9, 0.1, 0.3]), labels, 0.6).tolist() == [1, 3, 2]
    assert suppress(boxes, torch.tensor([0.5, 0.9, 0.1, 0.3]), labels, 1.0).tolist() == [1, 0, 3, 2]
