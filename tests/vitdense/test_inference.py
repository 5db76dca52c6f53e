"""Sliding windows, scales and flips: nothing is lost, shifted or counted twice."""

from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.contracts import Batch, Head, Outputs, Predictions
from vitdense.errors import UserError
from vitdense.inference import InferenceConfig, blend_weights, fit, infer, window_starts


class Remember(Head):
    """A head that keeps the logits it was given, and predicts by argmax."""

    num_classes = 3
    seen: Tensor

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        return {"logits": features[0]}

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        return {}

    def predict(self, outputs: Outputs, batch: Batch) -> Predictions:
        self.seen = outputs["logits"]
        return [
            F.interpolate(logits[None], size, mode="bilinear")[0].argmax(dim=0)
            for logits, size in zip(outputs["logits"], batch["sizes"], strict=True)
        ]


class Fake(nn.Module):
    """A model made of one function of float images; it counts its calls."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.head = Remember()
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, batch: Batch) -> Outputs:
        images = batch["images"]
        self.sizes.append(tuple(images.shape))
        return {"logits": self.function(images if images.is_floating_point() else images / 255)}


def pointwise(images: Tensor) -> Tensor:
    return torch.cat([images.sin(), images.cos() * 2, -images], dim=1)[:, 1:8:3]


def strided(images: Tensor) -> Tensor:
    return F.avg_pool2d(pointwise(images), 4, ceil_mode=True)


def pictures(height: int = 50, width: int = 67) -> Batch:
    images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
    return {"images": images, "sizes": [(height, width), (31, 90)]}


def logits(function: Callable[[Tensor], Tensor], batch: Batch, **options: object) -> Tensor:
    model = Fake(function)
    predictions = infer(model, batch, InferenceConfig.model_validate(options))
    assert [tuple(p.shape) for p in predictions] == batch["sizes"]
    return model.head.seen


@pytest.mark.parametrize("blend", ["gaussian", "cosine", "uniform"])
@pytest.mark.parametrize("window", [20, (16, 100), (200, 33)])
@pytest.mark.parametrize("stride", [None, (7, 11), 16])
def test_sliding_a_pointwise_model_equals_the_whole(blend: str, window: object, stride: object) -> None:
    batch = pictures()
    slid = logits(pointwise, batch, mode="sliding", window=window, stride=stride, blend=blend, window_batch=3)
    torch.testing.assert_close(slid, logits(pointwise, batch), rtol=0, atol=1e-6)


def test_sliding_with_equal_weights_is_the_mean_that_mmsegmentation_takes() -> None:
    batch = pictures()
    images = batch["images"] / 255
    total, count = torch.zeros(2, 3, 50, 67), torch.zeros(50, 67)
    for top in (0, 16, 26):
        for left in (0, 16, 32, 43):
            crop = images[..., top : top + 24, left : left + 24]
            total[..., top : top + 24, left : left + 24] += F.interpolate(strided(crop), (24, 24), mode="bilinear")
            count[top : top + 24, left : left + 24] += 1
    slid = logits(strided, batch, mode="sliding", window=24, stride=16, blend="uniform")
    torch.testing.assert_close(slid, total / count, rtol=0, atol=1e-6)


def test_window_batch_changes_calls_and_not_logits() -> None:
    batch = pictures()
    one = logits(strided, batch, mode="sliding", window=24, window_batch=1)
    torch.testing.assert_close(
        logits(strided, batch, mode="sliding", window=24, window_batch=5), one, rtol=0, atol=1e-6
    )


def test_a_picture_smaller_than_the_window_is_seen_whole() -> None:
    model, batch = Fake(strided), pictures()
    infer(model, batch, InferenceConfig(mode="sliding", window=512))
    assert model.sizes == [(2, 3, 50, 67)]


@pytest.mark.parametrize(
    ("size", "starts"), [(5, [0]), (10, [0]), (11, [0, 1]), (24, [0, 7, 14]), (30, [0, 7, 14, 20])]
)
def test_windows_reach_the_border(size: int, starts: list[int]) -> None:
    assert window_starts(size, 10, 7) == starts


@pytest.mark.parametrize("blend", ["gaussian", "cosine", "uniform"])
def test_blend_weights_are_symmetric_and_never_zero(blend: str) -> None:
    weights = blend_weights(InferenceConfig.model_validate({"blend": blend}).blend, (31, 64))
    assert weights.shape == (31, 64)
    assert weights.min() >= 1e-3
    assert weights.max() <= 1
    torch.testing.assert_close(weights, weights.flip(0).flip(1))


def test_one_view_reaches_the_head_untouched() -> None:
    batch = pictures()
    assert torch.equal(logits(strided, batch), strided(batch["images"] / 255))


def test_flips_are_undone() -> None:
    batch = pictures()
    flipped = logits(pointwise, batch, flip=True)
    torch.testing.assert_close(flipped.exp(), logits(pointwise, batch).softmax(dim=1), rtol=0, atol=1e-6)


def test_flips_are_averaged_as_probabilities() -> None:
    def lopsided(images: Tensor) -> Tensor:
        return pointwise(images) + torch.linspace(-2, 2, images.shape[-1]) * torch.tensor([1.0, 0, -1]).view(3, 1, 1)

    batch = pictures()
    images = batch["images"] / 255
    expected = (lopsided(images).softmax(dim=1) + lopsided(images.flip(-1)).flip(-1).softmax(dim=1)) / 2
    torch.testing.assert_close(logits(lopsided, batch, flip=True).exp(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["whole", "sliding"])
def test_several_scales_of_a_constant_picture_agree(mode: str) -> None:
    batch: Batch = {"images": torch.full((2, 3, 50, 67), 90, dtype=torch.uint8), "sizes": [(50, 67), (100, 130)]}
    many = logits(strided, batch, mode=mode, window=32, scales=[0.5, 1.0, 1.75], flip=True)
    assert many.shape[-2:] == (50, 67)
    expected = pointwise(batch["images"] / 255).softmax(dim=1)
    torch.testing.assert_close(many.exp(), expected, rtol=0, atol=1e-5)


def test_scales_and_flips_multiply() -> None:
    model = Fake(strided)
    infer(model, pictures(40, 60), InferenceConfig(scales=(0.5, 1.0), flip=True))
    assert model.sizes == [(2, 3, 20, 30)] * 2 + [(2, 3, 40, 60)] * 2


def test_certain_predictions_stay_finite() -> None:
    def certain(images: Tensor) -> Tensor:
        return pointwise(images).sign() * 1000

    assert logits(certain, pictures(), flip=True).isfinite().all()


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        ((480, 640), {"short_side": 512, "long_max": 2048}, (512, 683)),
        ((400, 3000), {"short_side": 512, "long_max": 2048}, (273, 2048)),
        ((100, 50), {"short_side": 512}, (1024, 512)),
        ((100, 50), {"long_max": 60}, (60, 30)),
        ((100, 50), {"long_max": 600}, (100, 50)),
        ((3000, 1), {"long_max": 100}, (100, 1)),
    ],
)
def test_pictures_are_fitted_with_their_shape_kept(
    size: tuple[int, int], options: dict[str, int], expected: tuple[int, int]
) -> None:
    assert fit(size, InferenceConfig.model_validate(options)) == expected


def test_resized_pictures_are_antialiased_floats() -> None:
    model, batch = Fake(pointwise), pictures(40, 60)
    infer(model, batch, InferenceConfig(short_side=20))
    smaller = F.interpolate(batch["images"] / 255, (20, 30), mode="bilinear", antialias=True)
    torch.testing.assert_close(model.head.seen, pointwise(smaller), rtol=0, atol=1e-6)


def test_half_precision_windows_are_added_up_in_fp32() -> None:
    slid = logits(lambda images: pointwise(images).half(), pictures(), mode="sliding", window=20)
    assert slid.dtype == torch.float32


def test_a_stride_that_leaves_gaps_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"stride \(40, 40\) leaves gaps between windows of \(32, 32\)"):
        InferenceConfig(window=32, stride=40)


@pytest.mark.parametrize("options", [{"mode": "sliding"}, {"flip": True}, {"scales": (1.0, 2.0)}])
def test_heads_without_logits_by_pixel_are_refused_beyond_the_whole_picture(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"need a head that gives logits \(B, K, h, w\).*set mode: whole"):
        infer(Fake(lambda images: images.mean(dim=(2, 3))), pictures(), InferenceConfig.model_validate(options))


class Deep(Remember):
    """A head of depth that keeps what it was given."""

    dense = "depth"
    num_classes = 0

    def predict(self, outputs: Outputs, batch: Batch) -> Predictions:
        self.seen = outputs["depth"]
        return [
            F.interpolate(depth[None], size, mode="bilinear")[0, 0]
            for depth, size in zip(outputs["depth"], batch["sizes"], strict=True)
        ]


class FakeDepth(Fake):
    """Depth made of one function of float images."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__(function)
        self.head = Deep()

    def forward(self, batch: Batch) -> Outputs:
        return {"depth": super().forward(batch)["logits"]}


def depth(function: Callable[[Tensor], Tensor], batch: Batch, **options: object) -> Tensor:
    model = FakeDepth(function)
    predictions = infer(model, batch, InferenceConfig.model_validate(options))
    assert [tuple(p.shape) for p in predictions] == batch["sizes"]
    return model.head.seen


def metres(images: Tensor) -> Tensor:
    return images.sum(dim=1, keepdim=True) * 3 + 0.5


@pytest.mark.parametrize("options", [{}, {"scales": (1.0, 1.0)}, {"flip": True}])
def test_windows_and_views_of_depth_are_averaged_as_they_are(options: dict[str, object]) -> None:
    batch = pictures()
    whole = metres(batch["images"] / 255)
    torch.testing.assert_close(depth(metres, batch, **options), whole, rtol=0, atol=1e-5)
    slid = depth(metres, batch, mode="sliding", window=20, **options)
    torch.testing.assert_close(slid, whole, rtol=0, atol=1e-5)


def test_flips_of_depth_give_the_mean_in_metres() -> None:
    def lopsided(images: Tensor) -> Tensor:
        return metres(images) + torch.linspace(0, 4, images.shape[-1])

    batch = pictures()
    images = batch["images"] / 255
    expected = (lopsided(images) + lopsided(images.flip(-1)).flip(-1)) / 2
    torch.testing.assert_close(depth(lopsided, batch, flip=True), expected, rtol=0, atol=1e-5)


def test_scales_of_a_constant_picture_have_one_depth() -> None:
    batch: Batch = {"images": torch.full((2, 3, 50, 67), 90, dtype=torch.uint8), "sizes": [(50, 67), (100, 130)]}
    many = depth(metres, batch, mode="sliding", window=32, scales=[0.5, 1.0, 1.75], flip=True)
    torch.testing.assert_close(many, metres(batch["images"] / 255), rtol=0, atol=1e-5)


def test_a_model_of_depth_is_left_untouched_by_averaging() -> None:
    """The views' own outputs may be kept by the model; the mean is made beside them."""
    kept: list[Tensor] = []

    def keeping(images: Tensor) -> Tensor:
        kept.append(metres(images))
        return kept[-1]

    batch = pictures()
    depth(keeping, batch, scales=(1.0, 1.0))
    assert torch.equal(kept[0], metres(batch["images"] / 255))
