"""The shared loss and prediction of segmentation heads, at their edges."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from heads import create_head
from heads.segmentation import SegmentationHead
from vitdense.contracts import Batch, Level
from vitdense.errors import UserError


def head(num_classes: int = 5, **options: object) -> SegmentationHead:
    made = create_head("linear", (Level(6, 4),), num_classes=num_classes, **options)
    assert isinstance(made, SegmentationHead)
    return made


def batch(num_classes: int = 5, dtype: torch.dtype = torch.int64) -> Batch:
    return {"images": torch.zeros(2, 3, 22, 30), "masks": torch.randint(-1, num_classes, (2, 22, 30)).to(dtype)}


def loss(logits: Tensor, given: Batch, **options: object) -> Tensor:
    return head(logits.shape[1], **options).losses({"logits": logits}, given)["loss_ce"]


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_equals_torch_on_upsampled_logits(dtype: torch.dtype) -> None:
    logits, given = torch.randn(2, 5, 6, 8), batch(dtype=dtype)
    upsampled = F.interpolate(logits, (22, 30), mode="bilinear")
    torch.testing.assert_close(loss(logits, given), F.cross_entropy(upsampled, given["masks"].long(), ignore_index=-1))


def test_equals_torch_with_class_weights_and_label_smoothing() -> None:
    logits, given, weights = torch.randn(2, 3, 22, 30), batch(3), (0.2, 1.0, 3.0)
    expected = F.cross_entropy(
        logits, given["masks"], weight=torch.tensor(weights), ignore_index=-1, label_smoothing=0.1
    )
    torch.testing.assert_close(loss(logits, given, class_weights=weights, label_smoothing=0.1), expected)


def test_align_corners_reaches_the_loss() -> None:
    logits, given = torch.randn(2, 5, 6, 8), batch()
    upsampled = F.interpolate(logits, (22, 30), mode="bilinear", align_corners=True)
    expected = F.cross_entropy(upsampled, given["masks"], ignore_index=-1)
    torch.testing.assert_close(loss(logits, given, align_corners=True), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"class_weights": (1.0, 2.0, 3.0, 4.0, 5.0)}])
def test_a_batch_without_labels_costs_exactly_nothing_and_keeps_the_graph(
    dtype: torch.dtype, options: dict[str, object]
) -> None:
    logits = torch.full((2, 5, 6, 8), 60000.0, dtype=dtype, requires_grad=True)
    given: Batch = {"images": torch.zeros(2, 3, 22, 30), "masks": torch.full((2, 22, 30), -1)}
    value = loss(logits, given, **options)
    value.backward()  # type: ignore[no-untyped-call]
    assert value.item() == 0
    assert logits.grad is not None
    assert logits.grad.count_nonzero() == 0


def test_a_batch_without_labels_reaches_every_parameter() -> None:
    model = create_head("upernet", (Level(6, 4), Level(6, 8)), num_classes=5, channels=8, auxiliary_channels=8)
    given: Batch = {"images": torch.zeros(2, 3, 22, 30), "masks": torch.full((2, 22, 30), -1)}
    features = [torch.randn(2, 6, 6, 8), torch.randn(2, 6, 3, 4)]
    losses = model.losses(model(features, given), given)
    (losses["loss_ce"] + losses["loss_aux"]).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.count_nonzero() == 0 for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_summed_in_fp32(dtype: torch.dtype) -> None:
    logits, given = (torch.randn(2, 5, 6, 8) * 100).to(dtype), batch()
    value = loss(logits, given)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(logits.float(), given), rtol=0, atol=0)


def test_double_precision_stays() -> None:
    assert loss(torch.randn(2, 5, 6, 8, dtype=torch.float64), batch(), class_weights=(1.0,) * 5).dtype == torch.float64


def test_one_class_costs_nothing_and_is_predicted_everywhere() -> None:
    logits, given = torch.randn(2, 1, 6, 8), batch(1)
    given["sizes"] = [(22, 30), (9, 7)]
    assert loss(logits, given).item() == 0
    predictions = head(1).predict({"logits": logits}, given)
    assert [tuple(p.shape) for p in predictions] == [(22, 30), (9, 7)]
    assert all(p.count_nonzero() == 0 for p in predictions)


def test_auxiliary_loss_carries_its_weight() -> None:
    model = create_head("upernet", (Level(6, 4), Level(6, 8)), num_classes=5, auxiliary_weight=0.25, channels=8)
    logits, given = torch.randn(2, 5, 6, 8), batch()
    losses = model.losses({"logits": logits, "auxiliary_logits": logits}, given)
    torch.testing.assert_close(losses["loss_aux"], 0.25 * losses["loss_ce"])


def test_a_mask_of_another_size_is_named_with_both_sizes() -> None:
    given = batch()
    given["images"] = torch.zeros(2, 3, 22, 31)
    with pytest.raises(UserError, match=r"\(2, 22, 31\) as the pictures are, got \(2, 22, 30\)"):
        loss(torch.randn(2, 5, 6, 8), given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8])
def test_a_mask_of_another_dtype_is_named(dtype: torch.dtype) -> None:
    with pytest.raises(UserError, match=rf"int16, int32 or int64 class indices, got {dtype}"):
        loss(torch.randn(2, 5, 6, 8), batch(dtype=dtype))


def test_class_weights_must_match_the_classes() -> None:
    with pytest.raises(UserError, match="class_weights needs one number per class: got 3 for 5"):
        head(class_weights=(1.0, 2.0, 3.0))


@pytest.mark.parametrize(("classes", "dtype"), [(255, torch.uint8), (256, torch.int16)])
def test_predictions_hold_every_class_index(classes: int, dtype: torch.dtype) -> None:
    logits = torch.zeros(1, classes, 2, 2)
    logits[:, -1] = 1
    prediction = head(classes).predict({"logits": logits}, {"sizes": [(3, 5)]})[0]
    assert prediction.dtype == dtype
    assert (prediction == classes - 1).all()


def test_predictions_equal_argmax_of_resized_logits() -> None:
    logits = torch.randn(1, 5, 6, 8)
    prediction = head().predict({"logits": logits}, {"sizes": [(23, 31)]})[0]
    expected = F.interpolate(logits, (23, 31), mode="bilinear").argmax(dim=1)[0]
    assert torch.equal(prediction.long(), expected)
