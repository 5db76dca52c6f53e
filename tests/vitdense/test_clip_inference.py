"""Clips and volumes: views averaged, windows blended, nothing lost or counted twice; inputs of another kind refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from heads import create_head
from vitdense.contracts import Backbone, Batch, Level, Tokens
from vitdense.errors import UserError
from vitdense.inference import InferenceConfig, infer
from vitdense.inference.volumes import slide_over_volume, to_size
from vitdense.model import Model


class Cells(Backbone):
    """A stand-in for clips: averages of 2 x 4 x 4 voxels."""

    levels = (Level(3, 4, 2),)
    embed_dim, num_layers = 3, 1

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.mean, self.std = (0.0,) * channels, (1.0,) * channels
        self.widen = torch.nn.Conv3d(channels, 3, 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        frames, height, width = images.shape[2:]
        whole = F.pad(images, (0, -width % 4, 0, -height % 4, 0, -frames % 2))
        return [self.widen(F.avg_pool3d(whole, (2, 4, 4)))]

    def tokens(self, images: Tensor) -> Tokens:
        (maps,) = self(images)
        patches = maps.flatten(2).transpose(1, 2)
        return Tokens(patches, patches[:, :0], tuple(maps.shape[2:]))

    def embed(self, images: Tensor) -> Tensor:
        vector: Tensor = self(images)[0].mean((2, 3, 4))
        return vector

    def layer_of(self, parameter: str) -> int:
        return 0


class ClipModel(Model):
    """Normalises nothing, whatever axes there are."""

    def normalise(self, images: Tensor) -> Tensor:
        return images if images.is_floating_point() else images.float() / 255


def model(name: str = "classify", channels: int = 3, **options: Any) -> Model:
    backbone = Cells(channels)
    made = create_head(name, backbone, num_classes=5, **options)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return ClipModel(backbone, made, classes=list("abcde")).eval()


def test_views_are_averaged_as_probabilities() -> None:
    clips = torch.rand(6, 3, 4, 8, 8)
    asked = model()
    batch: Batch = {"images": clips, "views": 3, "sizes": [(8, 8)] * 2}
    found = infer(asked, batch, InferenceConfig(window_batch=4))
    alone = asked({"images": clips})["logits"].softmax(-1).view(2, 3, 5).mean(1)
    torch.testing.assert_close(torch.stack(found).softmax(-1), alone)
    assert len(found) == 2


def test_one_view_is_the_models_own_logits() -> None:
    clips = torch.rand(2, 3, 4, 8, 8)
    asked = model()
    found = infer(asked, {"images": clips, "sizes": [(8, 8)] * 2}, InferenceConfig())
    torch.testing.assert_close(torch.stack(found), asked({"images": clips})["logits"])


def pointwise(crops: Tensor) -> Tensor:
    return torch.cat([crops.sin(), crops.cos()], dim=1)


@pytest.mark.parametrize("size", [(9, 21, 17), (4, 8, 8), (3, 5, 30)])
@pytest.mark.parametrize("blend", ["gaussian", "cosine", "uniform"])
@pytest.mark.parametrize("depth", [(None, None), (4, None), (5, 2)])
def test_sliding_a_pointwise_model_equals_the_whole(
    size: tuple[int, int, int], blend: str, depth: tuple[int | None, int | None]
) -> None:
    options = {"mode": "sliding", "window": (8, 10), "blend": blend, "window_depth": depth[0], "stride_depth": depth[1]}
    images = torch.randn(2, 1, *size)
    found = slide_over_volume(pointwise, images, InferenceConfig.model_validate(options))
    torch.testing.assert_close(found, pointwise(images), rtol=1e-5, atol=1e-5)


def test_windows_of_half_the_size_are_brought_back() -> None:
    def halved(crops: Tensor) -> Tensor:
        assert crops.shape[2:] == (4, 6, 6)
        return F.avg_pool3d(crops, 2)

    config = InferenceConfig(mode="sliding", window=6, window_depth=4, window_batch=3)
    found = slide_over_volume(halved, torch.ones(1, 1, 9, 13, 7), config)
    torch.testing.assert_close(found, torch.ones(1, 1, 9, 13, 7))
    assert to_size(found, (3, 4, 5)).shape == (1, 1, 3, 4, 5)


@pytest.mark.parametrize("options", [{}, {"mode": "sliding", "window": 16, "window_depth": 4}, {"flip": True}])
@pytest.mark.parametrize("head", ["linear_3d", "per_frame"])
def test_every_way_of_looking_gives_each_frame_its_mask(options: dict[str, Any], head: str) -> None:
    given: dict[str, Any] = {"head": {"name": "linear", "num_classes": 5}} if head == "per_frame" else {}
    asked = model(head, **given)
    batch: Batch = {"images": 9 * torch.randn(2, 3, 7, 22, 30), "sizes": [(22, 30)] * 2}
    found = infer(asked, batch, InferenceConfig.model_validate(options))
    assert [tuple(each.shape) for each in found] == [(7, 22, 30)] * 2
    assert len(torch.unique(torch.stack(found))) > 1


def test_a_flip_of_a_mirrored_clip_is_the_mirrored_prediction() -> None:
    asked = model("linear_3d")
    images = torch.rand(1, 3, 4, 16, 24)
    config = InferenceConfig(flip=True)
    one, other = (infer(asked, {"images": each, "sizes": [(16, 24)]}, config)[0] for each in (images, images.flip(-1)))
    assert torch.equal(one, other.flip(-1))


def test_predict_takes_clips_and_volumes() -> None:
    clip = np.random.default_rng(0).integers(0, 256, (5, 16, 20, 3)).astype(np.uint8)
    asked = model()
    (logits,) = asked.predict([clip])
    (same,) = asked.predict([torch.from_numpy(clip).permute(3, 0, 1, 2)])
    assert logits.shape == (5,)
    torch.testing.assert_close(logits, same)
    (mask,) = model("linear_3d", channels=1).predict([torch.rand(1, 6, 10, 12)])
    assert mask.shape == (6, 10, 12)
    for frames in (1, 2, 7):
        assert asked.predict([clip[:1].repeat(frames, 0)])[0].shape == (5,)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (np.zeros((16, 20, 3), np.uint8), r"input 0 is a picture, and the model takes clips \(T, H, W, C\)"),
        (np.zeros((0, 16, 20, 3), np.uint8), r"input 0 is empty: \(C, T, H, W\) = \(3, 0, 16, 20\)"),
        (np.zeros((4, 16, 20, 4), np.uint8), "clip 0 has 4 channels, the model takes 3"),
        (np.zeros((4, 16, 20, 3), np.float32), "expected a path"),
    ],
)
def test_what_is_no_clip_is_told(given: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        model().predict([given])


def test_a_stride_without_its_window_is_told() -> None:
    with pytest.raises(ValidationError, match="stride_depth 3 needs a window_depth"):
        InferenceConfig(stride_depth=3)


def test_a_head_without_classes_has_no_views() -> None:
    asked = model()
    forward: Callable[[Batch], dict[str, Tensor]] = lambda batch: {"logits": batch["images"]}  # noqa: E731
    asked.forward = forward  # type: ignore[method-assign, assignment]
    with pytest.raises(UserError, match="several views of a clip need a head that gives logits"):
        infer(asked, {"images": torch.rand(2, 3, 4, 8, 8), "views": 2, "sizes": [(8, 8)]}, InferenceConfig())
