"""Contrastive losses by strips: open_clip's and torch's numbers and gradients, without logits (N, N)."""

import math
from collections.abc import Callable

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor
from torch.nn import functional as F

from vitdense.errors import UserError
from vitdense.ops import contrastive_strips
from vitdense.ops.contrastive import clip_loss, siglip_loss

Loss = Callable[..., Tensor]
EXACT = {torch.float32: 1e-6, torch.float64: 1e-12}
CASES = [pytest.param(clip_loss, ClipLoss(), id="clip"), pytest.param(siglip_loss, SigLipLoss(), id="siglip")]
OURS = [pytest.param(clip_loss, id="clip"), pytest.param(siglip_loss, id="siglip")]


@pytest.fixture(autouse=True)
def _thin_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips of seven rows in parts of few, which divide nothing here."""
    monkeypatch.setattr(contrastive_strips, "ROWS", 7)
    monkeypatch.setattr(contrastive_strips, "VALUES", {"cpu": 1})
    monkeypatch.setattr(contrastive_strips, "PART", {"cpu": 100})


def pairs(number: int, dtype: torch.dtype = torch.float32, width: int = 24) -> tuple[Tensor, ...]:
    images = torch.randn(number, width, dtype=torch.float64)
    texts = torch.randn(number, width, dtype=torch.float64) + images
    unit = [F.normalize(each, dim=1).to(dtype) for each in (images, texts)]
    return *unit, torch.tensor(14.3, dtype=dtype), torch.tensor(-6.0, dtype=dtype)


def learn(loss: Loss, given: tuple[Tensor, ...], **options: Tensor) -> list[Tensor]:
    """The loss and the gradients of all that is given."""
    leaves = [each.clone().requires_grad_() for each in given]
    value = loss(*leaves, **options)
    gradients = torch.autograd.grad(3 * value, leaves)
    return [value.detach(), *gradients]


def given_to(loss: Loss, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return given[:3] if loss is clip_loss else given


def assert_near(found: list[Tensor], expected: list[Tensor], bound: float) -> None:
    for each, wanted in zip(found, expected, strict=True):
        assert (each.double() - wanted.double()).abs().max() <= bound * max(float(wanted.abs().max()), 1.0)


@pytest.mark.parametrize(("ours", "theirs"), CASES)
@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("number", [1, 2, 7, 50])
def test_values_and_gradients_are_open_clips(ours: Loss, theirs: Loss, dtype: torch.dtype, number: int) -> None:
    """In double precision, that is: in float32 both stray from it by as much."""
    given = given_to(ours, pairs(number, dtype))
    assert_near(learn(ours, given), learn(theirs, tuple(each.double() for each in given)), EXACT[dtype])


@pytest.mark.parametrize(("ours", "theirs"), CASES)
@pytest.mark.parametrize("scale", [1e-3, 100.0, 300.0])
def test_sharp_and_flat_logits_keep_their_digits(ours: Loss, theirs: Loss, scale: float) -> None:
    """At 300 a softmax spans more than float32's exponents, and each way of choosing has columns of its own range; at
    100 all logits still share one shift, and at 1e-3 they need none."""
    images, texts, _, bias = pairs(40, torch.float64)
    texts = texts * torch.logspace(-2, 0, 40)[:, None]
    exact = given_to(ours, (images, texts, torch.tensor(scale, dtype=torch.float64), bias))
    assert_near(learn(ours, exact), learn(theirs, exact), 1e-12)
    rough = tuple(each.float() for each in exact)
    assert_near(learn(ours, rough), learn(ours, tuple(each.double() for each in rough)), 2e-5)


@pytest.mark.parametrize(
    ("least", "most", "shift"),
    [(-50.0, 50.0, 0.0), (10.0, 100.0, 55.0), (-10.0, 100.0, None), (0.0, math.inf, None), (math.nan, math.nan, None)],
)
def test_one_shift_serves_all_logits_where_float32_reaches(least: float, most: float, shift: float | None) -> None:
    assert contrastive_strips._shift_within(torch.tensor([least, most]), torch.float32) == shift


def test_bounds_hold_every_logit_and_every_sum() -> None:
    images, texts, scale, _ = pairs(50, torch.float64)
    side = contrastive_strips.Side(3 * images, texts, 0, scale)
    logits = scale * 3 * images @ texts.T
    least, most = side.bounds().tolist()
    assert least <= min(float(logits.logsumexp(dim).amin()) for dim in (0, 1))
    assert most >= float(logits.amax())


@pytest.mark.parametrize("ours", OURS)
def test_gradients_and_their_gradients_are_true(ours: Loss) -> None:
    given = given_to(ours, pairs(9, torch.float64, width=4))
    leaves = [each.clone().requires_grad_() for each in given]
    assert torch.autograd.gradcheck(ours, leaves)
    assert torch.autograd.gradgradcheck(ours, leaves)


@pytest.mark.parametrize("ours", OURS)
def test_only_what_is_asked_for_gets_a_gradient(ours: Loss) -> None:
    given = given_to(ours, pairs(20, torch.float64))
    every = learn(ours, given)[1:]
    for asked in range(len(given)):
        leaves = [each.clone().requires_grad_(place == asked) for place, each in enumerate(given)]
        torch.autograd.backward(3 * ours(*leaves))
        for place, leaf in enumerate(leaves):
            assert (leaf.grad is not None) == (place == asked)
        gradient = leaves[asked].grad
        assert gradient is not None
        assert_near([gradient], [every[asked]], 1e-12)


@pytest.mark.parametrize("ours", OURS)
def test_the_way_back_can_be_gone_twice(ours: Loss) -> None:
    leaves = [each.clone().requires_grad_() for each in given_to(ours, pairs(20, torch.float64))]
    loss = ours(*leaves)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(2 * loss, leaves)
    assert_near(list(second), [2 * each for each in first], 1e-12)


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(ours: Loss, dtype: torch.dtype) -> None:
    images, texts, scale, bias = pairs(30)
    rough = given_to(ours, (images.to(dtype), texts.to(dtype), scale, bias))
    found = learn(ours, rough)
    expected = learn(ours, tuple(each.float() for each in rough))
    assert found[0].dtype == torch.float32
    assert found[1].dtype == dtype
    assert_near(found[:1], expected[:1], 1e-7)
    assert_near(found[1:], [each.to(one.dtype) for each, one in zip(expected[1:], found[1:], strict=True)], 1e-7)
    full = given_to(ours, (images, texts, scale, bias))
    with torch.autocast("cpu", torch.bfloat16):
        inside = learn(ours, full)
    assert_near(inside, learn(ours, full), 1e-7)


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("masked", [False, True])
def test_a_traced_graph_gives_the_same(ours: Loss, masked: bool) -> None:
    given = given_to(ours, pairs(20, torch.float64))
    options = {"same": torch.arange(20) // 3} if masked else {}
    eager = learn(ours, given, **options)
    compiled = learn(torch.compile(ours, backend="aot_eager", fullgraph=True), given, **options)
    assert_near(compiled, eager, 1e-12)
    assert_near([ours(*given, **options)], eager[:1], 1e-15)


def test_no_tensor_has_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    number, largest = 200, [0]
    make = torch.Tensor.new_empty

    def watched(self: Tensor, *size: object, **options: object) -> Tensor:
        made = make(self, *size, **options)  # type: ignore[call-overload]
        largest[0] = max(largest[0], made.numel())
        return made  # type: ignore[no-any-return]

    monkeypatch.setattr(torch.Tensor, "new_empty", watched)
    learn(clip_loss, pairs(number)[:3])
    learn(siglip_loss, pairs(number))
    assert 0 < largest[0] <= 7 * number


def test_texts_that_say_the_same_are_negatives_unless_told() -> None:
    """As published, k times the same text keep each of its pictures above log(k); told so, they cost nothing."""
    images = torch.eye(6, 8, dtype=torch.float64)
    texts, same = images.clone(), torch.tensor([0, 1, 1, 1, 4, 5])
    texts[1:4] = texts[1:4].mean(dim=0)
    texts, sharp = F.normalize(texts, dim=1), torch.tensor(1e4, dtype=torch.float64)
    assert float(clip_loss(images, texts, sharp)) == pytest.approx(3 * math.log(3) / 6, abs=1e-9)
    assert float(clip_loss(images, texts, sharp, same=same)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("ours", OURS)
def test_masking_leaves_out_other_pairs_of_the_same_text(ours: Loss) -> None:
    """Against the whole matrix of logits; a strip may hold nothing but one text."""
    images, texts, scale, bias = pairs(23, torch.float64)
    same = torch.tensor([5] * 15 + [1, 2, 3, 1, 5, 9, 8, 1])

    def whole(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        own = torch.eye(23, dtype=torch.bool)
        logits = scale * images @ texts.T
        hidden = (same[:, None] == same) & ~own
        if bias is None:
            logits = logits.masked_fill(hidden, -torch.inf)
            return (F.cross_entropy(logits, torch.arange(23)) + F.cross_entropy(logits.T, torch.arange(23))) / 2
        terms = F.logsigmoid(torch.where(own, 1.0, -1.0) * (logits + bias))
        return -terms[~hidden].sum() / 23

    given = given_to(ours, (images, texts, scale, bias))
    assert_near(learn(ours, given, same=same), learn(whole, given), 1e-12)


def test_without_a_bias_siglip_has_none() -> None:
    images, texts, scale, bias = pairs(12, torch.float64)
    assert torch.equal(siglip_loss(images, texts, scale), siglip_loss(images, texts, scale, bias * 0))


def test_a_picture_without_its_text_is_told() -> None:
    with pytest.raises(UserError, match=r"one text for each picture; given \(3, 8\) and \(4, 8\)"):
        clip_loss(torch.zeros(3, 8), torch.zeros(4, 8), torch.tensor(1.0))
