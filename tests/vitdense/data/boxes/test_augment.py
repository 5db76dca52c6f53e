"""Augmentation of boxes: they stay on their pixels in every kind, so do masks, and three numbers decide the draw."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from vitdense.contracts import DATA, Sample
from vitdense.data.boxes.augment import DetrAugment, JitterAugment, MosaicAugment, StretchAugment
from vitdense.data.boxes.iou_crop import iou_crop
from vitdense.data.boxes.samples import BoxDataConfig, BoxSamples
from vitdense.data.boxes.views import View, frame_view, seen
from vitdense.data.loader import collate, train_loader
from vitdense.errors import DataError

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
CROPS = {"crop_short": [100, 120], "crop_sides": [64, 110]}
KINDS = {
    "none": {"kind": "none", "flip": True},
    "detr": {"kind": "detr", "short": [96, 128, 160], "long_max": 230, **CROPS},
    "jitter": {"kind": "jitter", "size": [112, 128], "scale": [0.3, 2.0]},
    "stretch": {"kind": "stretch", "size": [128, 96], "photometric": False},
    "sizes": {"kind": "stretch", "sizes": [96, 128, [160, 96]], "photometric": False},
    "mosaic": {"kind": "mosaic", "size": 160, "photometric": False, "chance": 0.8},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight black pictures with a rectangle of its own colour for each of three classes, that don't overlap."""
    folder = tmp_path_factory.mktemp("rectangles")
    rng = np.random.default_rng(0)
    images, things = [], []
    (folder / "images").mkdir()
    (folder / "annotations").mkdir()
    for image in range(8):
        height, width = int(rng.integers(90, 200)), int(rng.integers(150, 260))
        pixels = np.zeros((height, width, 3), np.uint8)
        for label, colour in enumerate(COLOURS):
            left = width * label // 3 + int(rng.integers(0, 8))
            right = width * (label + 1) // 3 - int(rng.integers(8, 20))
            top, bottom = int(rng.integers(0, height // 3)), int(rng.integers(height // 2, height + 1))
            pixels[top:bottom, left:right] = colour
            box = [left, top, right - left, bottom - top]
            ring = [left, top, right, top, right, bottom, left, bottom]
            things.append({"image_id": image, "category_id": label, "bbox": box, "segmentation": [ring]})
        name = f"p{image}.png" if image % 2 else f"p{image}.jpg"
        Image.fromarray(pixels).save(folder / "images" / name, quality=95, subsampling=0)
        images.append({"id": image, "file_name": name, "width": width, "height": height})
    categories = [{"id": label, "name": f"c{label}"} for label in range(3)]
    content = {"images": images, "annotations": things, "categories": categories}
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return folder


def config(root: Path, kind: str, **options: object) -> BoxDataConfig:
    made = DATA.create("coco", {"root": str(root), "augment": KINDS[kind], **options})
    assert isinstance(made, BoxDataConfig)
    return made


def build(root: Path, kind: str, **options: object) -> BoxSamples:
    samples = config(root, kind, **options).build("train")
    assert isinstance(samples, BoxSamples)
    return samples


def coloured(sample: Sample, label: int) -> np.ndarray:
    """(H, W) where the picture has a class's colour by more than half."""
    pixels = sample["image"].numpy()
    return np.asarray(pixels[label].astype(int) - pixels[[c for c in range(3) if c != label]].max(0) > 127)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mosaic"])
def test_boxes_and_masks_stay_on_their_pixels(root: Path, kind: str, fast: bool) -> None:
    samples = build(root, kind, masks=True, fast_decode=fast)
    found = 0
    for epoch in range(6):
        for index in range(len(samples)):
            sample = samples[epoch, index]
            target = sample["target"]
            for box, label, mask in zip(target["boxes"], target["labels"], target["masks"], strict=True):
                pixels = coloured(sample, int(label))
                ys, xs = np.nonzero(pixels)
                around = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
                assert np.abs(around - box.numpy()).max() <= 1.01
                drawn = mask.numpy()
                assert drawn.shape == pixels.shape
                rim = 2 * sum(drawn.shape)
                assert (drawn != pixels).sum() <= min(rim, 2 * (ys.max() - ys.min() + xs.max() - xs.min() + 4))
                found += 1
    assert found > 60


def test_a_mosaics_boxes_hold_their_colour_and_all_of_it(root: Path) -> None:
    samples = build(root, "mosaic", masks=True, fast_decode=True)
    for index in range(24):
        sample = samples[index // 8, index % 8]
        target = sample["target"]
        for label in range(3):
            pixels = coloured(sample, label)
            mine = target["boxes"][target["labels"] == label].numpy()
            covered = np.zeros(pixels.shape, bool)
            for left, top, right, bottom in mine:
                inner = pixels[int(top) + 2 : int(bottom) - 1, int(left) + 2 : int(right) - 1]
                assert inner.size == 0 or inner.mean() > 0.97
                covered[max(int(top) - 1, 0) : int(bottom) + 2, max(int(left) - 1, 0) : int(right) + 2] = True
            left_out = (pixels & ~covered).sum()
            assert left_out < 0.05 * pixels.size  # boxes of which less than a tenth is seen are dropped
            drawn = target["masks"][target["labels"] == label].numpy().any(0) if len(mine) else np.zeros_like(pixels)
            assert (drawn & ~pixels).sum() < 0.02 * pixels.size


@pytest.mark.parametrize("kind", KINDS)
def test_seed_epoch_and_index_alone_decide(root: Path, kind: str) -> None:
    one, other = build(root, kind), build(root, kind)
    for index in range(3):
        first, second = one[2, index], other[2, index]
        assert torch.equal(first["image"], second["image"])
        assert torch.equal(first["target"]["boxes"], second["target"]["boxes"])
    changed = [one[3, 0], build(root, kind, seed=1)[2, 0], one[4, 0], one[5, 0]]
    assert any(
        each["image"].shape != one[2, 0]["image"].shape or not torch.equal(each["image"], one[2, 0]["image"])
        for each in changed
    )


def test_workers_change_nothing(root: Path) -> None:
    batches = []
    for workers in (0, 2):
        made = config(root, "mosaic", workers=workers, batch_size=4)
        loader = train_loader(made.build("train"), made, seed=3, start_step=0, num_steps=5)
        batches.append(list(loader))
    for one, other in zip(*batches, strict=True):
        assert one["ids"] == other["ids"]
        assert torch.equal(one["images"], other["images"])
        for mine, theirs in zip(one["targets"], other["targets"], strict=True):
            assert torch.equal(mine["boxes"], theirs["boxes"])


def test_boxes_lie_inside_and_have_an_area(root: Path) -> None:
    for kind in KINDS:
        samples = build(root, kind)
        for index in range(8):
            sample = samples[1, index]
            boxes = sample["target"]["boxes"]
            height, width = sample["image"].shape[1:]
            assert boxes.dtype == torch.float32
            assert bool((boxes[:, 2:] - boxes[:, :2] >= 0.99).all())
            assert bool((boxes >= 0).all())
            assert bool((boxes <= torch.tensor([width, height, width, height]) + 1e-3).all())


def test_a_view_loses_all_boxes_only_where_there_is_no_other(root: Path) -> None:
    samples = build(root, "jitter")
    assert all(len(samples[epoch, index]["target"]["boxes"]) for epoch in range(5) for index in range(8))


@pytest.mark.parametrize(("kind", "sizes"), [("stretch", {(128, 96)}), ("sizes", {(96, 96), (128, 128), (160, 96)})])
def test_stretching_gives_the_sizes_that_were_asked_for(root: Path, kind: str, sizes: set[tuple[int, int]]) -> None:
    samples = build(root, kind)
    assert {tuple(samples[epoch, 0]["image"].shape[1:]) for epoch in range(20)} == sizes


def test_detrs_sides_lie_in_their_bounds(root: Path) -> None:
    samples = build(root, "detr")
    for epoch in range(10):
        height, width = samples[epoch, 3]["image"].shape[1:]
        assert min(height, width) in (96, 128, 160) or max(height, width) == 230
        assert max(height, width) <= 230


def test_published_defaults() -> None:
    detr, jitter, stretch = DetrAugment(), JitterAugment(), StretchAugment()
    assert detr.short == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert (detr.long_max, detr.crop_short, detr.crop_sides) == (1333, (400, 500, 600), (384, 600))
    assert (jitter.size, jitter.scale) == (1024, (0.1, 2.0))
    assert (stretch.size, stretch.zoom_out, stretch.crop_chance) == (640, 4.0, 0.8)


@pytest.mark.parametrize(
    ("augment", "told"),
    [
        ({"kind": "jitter", "scale": [2, 1]}, "the smallest comes first"),
        ({"kind": "mosaic", "centre": [0.2, 1.5]}, "the point lies inside the canvas"),
        ({"kind": "detr", "crop_sides": [600, 384]}, "the smallest comes first"),
        ({"kind": "wobble"}, "'none'"),
        ({"kind": "detr", "size": 5}, "Extra inputs"),
    ],
)
def test_bad_options_are_told(augment: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        DATA.create("coco", {"augment": augment})


def test_which_boxes_stay() -> None:
    view = View((0, 50, 100, 100), (50, 25))
    boxes = np.array([[0, 0, 60, 10], [40, 0, 64, 10], [60, 20, 80, 24], [0, 0, 40, 9], [99, 0, 100, 9]], np.float64)
    kept, which = seen(boxes, view, visibility=0.5, by_centre=False, side=1.0)
    assert which.tolist() == [1, 2]
    assert kept.tolist() == [[0, 0, 7, 5], [5, 10, 15, 12]]
    assert seen(boxes, view, visibility=0.0, by_centre=False, side=0.0)[1].tolist() == [0, 1, 2, 4]
    assert seen(boxes, view, visibility=0.9, by_centre=True, side=0.0)[1].tolist() == [1, 2, 4]


def test_a_frame_beyond_the_picture_leaves_room_around_it() -> None:
    view = frame_view((40, 60), (-20, -60, 60, 60), (160, 120), flip=False)
    assert view == View((0, 0, 40, 60), (80, 60), (40, 60), False)
    assert view.boxes(np.array([[0.0, 0.0, 60.0, 40.0]])).tolist() == [[60, 40, 120, 120]]


def test_a_window_snaps_to_whole_pixels_of_a_smaller_picture() -> None:
    assert View((5, 9, 33, 61), (7, 13)).snapped(4).window == (4, 8, 36, 64)
    assert View((0, 0, 33, 64), (8, 16)).shrink() == 4
    assert View((0, 0, 33, 64), (33, 64)).shrink() == 1


def test_crops_of_ssd_overlap_a_box_whose_centre_they_hold() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([[100.0, 100.0, 140.0, 150.0], [200.0, 10.0, 260.0, 50.0]])
    crops = [iou_crop(rng, (0, 0, 200, 300), boxes) for _ in range(200)]
    cut = [crop for crop in crops if crop != (0, 0, 200, 300)]
    assert 60 < len(cut) < 190
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    for top, left, bottom, right in cut:
        assert 0 <= top < bottom <= 200
        assert 0 <= left < right <= 300
        assert 0.5 <= (right - left) / (bottom - top) <= 2
        assert any(left < x < right and top < y < bottom for x, y in centres)
    assert iou_crop(rng, (0, 0, 200, 300), np.zeros((0, 4))) == (0, 0, 200, 300)


@pytest.mark.parametrize(
    ("bucket", "expected"), [(64, (128, 128)), (None, (112, 128)), ([[200, 120], [120, 200], [400, 400]], (120, 200))]
)
def test_batches_are_padded_to_buckets(root: Path, bucket: object, expected: tuple[int, int]) -> None:
    made = config(root, "jitter", bucket=bucket, batch_size=4, workers=0)
    for batch in train_loader(made.build("train"), made, seed=0, start_step=0, num_steps=3):
        assert batch["images"].shape == (4, 3, *expected)
        assert batch["extents"].tolist() == [list(size) for size in batch["sizes"]]
        for image, (height, width) in zip(batch["images"], batch["sizes"], strict=True):
            assert not image[:, height:].any()
            assert not image[:, :, width:].any()


def test_a_bucket_that_holds_no_picture_is_told(root: Path) -> None:
    made = config(root, "jitter", bucket=[[64, 64]], batch_size=2, workers=0)
    with pytest.raises(DataError, match=r"data.bucket = 64x64: none holds pictures of 112x128"):
        next(iter(train_loader(made.build("train"), made, seed=0, start_step=0, num_steps=1)))


def test_pictures_of_one_size_have_no_extents(root: Path) -> None:
    samples = build(root, "stretch")
    canvas: Callable[[tuple[int, int]], tuple[int, int] | None] = config(root, "stretch").canvas
    batch = collate([samples[0, index] for index in range(3)], canvas)
    assert "extents" not in batch
    assert batch["images"].shape == (3, 3, 128, 96)


def test_one_kind_may_follow_another_by_name(root: Path) -> None:
    mosaic = MosaicAugment(size=64, chance=0.0)
    assert mosaic.canvas == (64, 64)
    layout = mosaic.layout(np.random.default_rng(0), 0, build(root, "none").records)
    assert len(layout.tiles) == 1
    assert max(layout.canvas) <= 64


def test_a_jpeg_divided_while_it_is_decoded_keeps_its_boxes(tmp_path: Path) -> None:
    pixels = np.zeros((701, 1003, 3), np.uint8)
    pixels[133:402, 301:777, 1] = 255
    for folder in ("images", "annotations"):
        (tmp_path / folder).mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "p.jpg", quality=95)
    content = {
        "images": [{"id": 1, "file_name": "p.jpg", "width": 1003, "height": 701}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [301, 133, 476, 269]}],
        "categories": [{"id": 1, "name": "c"}],
    }
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))
    shrinks = set()
    for size in (80, 150, 300):
        augment = {"kind": "jitter", "size": size, "scale": [0.8, 1.2]}
        samples = DATA.create("coco", {"root": str(tmp_path), "augment": augment, "fast_decode": True}).build("train")
        for epoch in range(12):
            sample = samples[epoch, 0]
            ys, xs = np.nonzero(sample["image"][1].numpy() > 127)
            around = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            assert np.abs(around - sample["target"]["boxes"][0].numpy()).max() <= 1.01
        assert isinstance(samples, BoxSamples)
        layout = JitterAugment.model_validate(augment).layout(np.random.default_rng(0), 0, samples.records)
        shrinks.add(layout.tiles[0].view.shrink())
    assert shrinks == {2, 4, 8}
