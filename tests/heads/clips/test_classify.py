"""One class of a whole picture or clip: what is pooled, what is learnt, what is refused."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from heads import create_head
from vitdense.contracts import IGNORE, Backbone, Batch, Level, Tokens
from vitdense.errors import UserError


class Cells(Backbone):
    """A stand-in backbone: tokens are 4x4 cells of each second frame, and the vector is their largest."""

    levels = (Level(12, 4, 2),)
    embed_dim, num_layers = 12, 1
    mean, std = (0.0,) * 3, (1.0,) * 3

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Conv3d(3, 12, (2, 4, 4), (2, 4, 4))

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.embedding(images)]

    def tokens(self, images: Tensor) -> Tokens:
        maps = self.embedding(images)
        patches = maps.flatten(2).transpose(1, 2)
        return Tokens(patches, patches.new_full((len(patches), 1, 12), 100.0), tuple(maps.shape[2:]))

    def embed(self, images: Tensor) -> Tensor:
        vector: Tensor = self.embedding(images).amax((2, 3, 4))
        return vector

    def layer_of(self, parameter: str) -> int:
        return 0


CLIPS = torch.rand(2, 3, 4, 8, 12)
BATCH: Batch = {"labels": torch.tensor([1, 4])}


@pytest.mark.parametrize("pool", ["vector", "mean", "attention"])
def test_every_pool_gives_logits_and_gradients(pool: str) -> None:
    backbone = Cells()
    head = create_head("classify", backbone, num_classes=5, pool=pool, num_heads=4)
    outputs = head(head.look(backbone, CLIPS), BATCH)
    assert outputs["logits"].shape == (2, 5)
    head.losses(outputs, BATCH)["loss_ce"].backward()  # type: ignore[no-untyped-call]
    assert [name for name, each in head.named_parameters() if each.grad is None] == []
    assert all(each.grad is not None and bool(each.grad.any()) for each in backbone.parameters())
    predictions = head.predict(outputs, BATCH)
    assert [tuple(each.shape) for each in predictions] == [(5,), (5,)]


def test_a_vector_is_the_backbones_own_and_a_mean_that_of_patches_alone() -> None:
    backbone = Cells()
    for pool, expected in (("vector", backbone.embed(CLIPS)), ("mean", backbone.tokens(CLIPS).patches.mean(1))):
        head = create_head("classify", backbone, num_classes=5, pool=pool)
        weight, bias = head.get_parameter("fc.weight"), head.get_parameter("fc.bias")
        logits = head(head.look(backbone, CLIPS), {})["logits"]
        torch.testing.assert_close(logits, expected @ weight.T + bias)


def test_an_attention_pool_sees_the_prefix_too() -> None:
    backbone = Cells()
    head = create_head("classify", backbone, num_classes=5, pool="attention", num_heads=4)
    (tokens,) = head.look(backbone, CLIPS)
    assert tokens.shape == (2, 1 + 2 * 2 * 3, 12)


def test_the_loss_is_cross_entropy_with_smoothed_labels_of_those_that_have_one() -> None:
    head = create_head("classify", Cells(), num_classes=5, label_smoothing=0.1)
    logits = torch.randn(3, 5)
    labels = torch.tensor([2, IGNORE, 0])
    found = head.losses({"logits": logits}, {"labels": labels})["loss_ce"]
    torch.testing.assert_close(found, F.cross_entropy(logits[[0, 2]], labels[[0, 2]], label_smoothing=0.1))
    nothing = head.losses({"logits": logits}, {"labels": torch.full((3,), IGNORE)})["loss_ce"]
    assert nothing.item() == 0


def test_half_precision_learns_in_full() -> None:
    head = create_head("classify", Cells(), num_classes=5)
    loss = head.losses({"logits": torch.randn(2, 5).bfloat16()}, BATCH)["loss_ce"]
    assert loss.dtype == torch.float32


def test_what_can_not_be_is_refused() -> None:
    with pytest.raises(UserError, match="give the backbone"):
        create_head("classify", (Level(8, 4),), num_classes=5)
    with pytest.raises(UserError, match="needs num_classes"):
        create_head("classify", Cells())
    with pytest.raises(UserError, match="num_heads is 5, which doesn't divide the backbone's width 12"):
        create_head("classify", Cells(), num_classes=5, pool="attention", num_heads=5)
    head = create_head("classify", Cells(), num_classes=5)
    with pytest.raises(UserError, match="a label for each"):
        head.losses({"logits": torch.randn(2, 5)}, {})


def test_data_without_labels_are_told() -> None:
    backbone = Cells()
    head = create_head("classify", backbone, num_classes=5)
    with pytest.raises(UserError, match=r"a label for each picture or clip, but the batch has only sizes"):
        head.losses(head(head.look(backbone, CLIPS), BATCH), {"sizes": [(8, 12)] * 2})
