"""Heads of masks in use: whole pictures of several sizes, windows for classes of pixels, and other runtimes."""

from typing import Any

import pytest
import torch

from heads import create_head
from vitdense.contracts import BACKBONES, Batch, Segments
from vitdense.errors import UserError
from vitdense.exporting import Deployed
from vitdense.inference import InferenceConfig, infer
from vitdense.model import Model

SMALL: Any = {
    "channels": 32,
    "pixel_channels": 32,
    "num_heads": 4,
    "mask_channels": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_queries": 6,
}


def model_of(head: str, task: str, **options: Any) -> Model:
    torch.manual_seed(0)
    name = "swin_nano" if head == "mask_transformer" else "vit_nano_patch8"
    small = SMALL if head == "mask_transformer" else {"num_queries": 6, "blocks": 2}
    backbone = BACKBONES.create(name, {}).build()
    return Model(backbone, create_head(head, backbone, num_classes=3, task=task, **small, **options)).eval()


@pytest.mark.parametrize("head", ["mask_transformer", "eomt"])
def test_pictures_of_several_sizes_in_one_batch(head: str) -> None:
    model = model_of(head, "panoptic", threshold=0.0, overlap_threshold=0.0, mask_threshold=0.0)
    images = torch.rand(2, 3, 64, 96)
    sizes = [(50, 96), (64, 70)]
    batch: Batch = {"images": images, "extents": torch.tensor(sizes), "sizes": [(100, 192), (64, 70)]}
    found = infer(model, batch, InferenceConfig())
    assert [tuple(each.ids.shape) for each in found] == batch["sizes"]
    for each in found:
        assert isinstance(each, Segments)
        numbers = each.named([7, 8, 9]).category_ids
        assert numbers is not None
        assert numbers.tolist() == [label + 7 for label in each.labels.tolist()]
        assert 0 <= each.ids.min() <= each.ids.max() <= len(each)
    with pytest.raises(UserError, match="segments are found in whole pictures"):
        infer(model, batch, InferenceConfig(flip=True))


@pytest.mark.parametrize("head", ["mask_transformer", "eomt"])
def test_windows_scales_and_flips_give_classes_of_pixels(head: str) -> None:
    model = model_of(head, "semantic")
    batch: Batch = {"images": torch.rand(1, 3, 80, 112), "sizes": [(80, 112)]}
    whole = infer(model, batch, InferenceConfig())[0]
    assert (whole.shape, whole.dtype) == ((80, 112), torch.int64)
    for config in (InferenceConfig(mode="sliding", window=64), InferenceConfig(scales=(0.5, 1.0), flip=True)):
        assert infer(model, batch, config)[0].shape == (80, 112)
    one = InferenceConfig(mode="sliding", window=(80, 112), blend="uniform")
    assert (infer(model, batch, one)[0] == whole).float().mean() > 0.95


@pytest.mark.parametrize("head", ["mask_transformer", "eomt"])
def test_a_traced_graph_gives_the_same(head: str) -> None:
    model = model_of(head, "panoptic")
    images = torch.rand(2, 3, 64, 64)
    deployed = Deployed(model)
    with torch.no_grad():
        program = torch.export.export(deployed, (images,), strict=False).module()
        found, expected = program(images), deployed(images)
    assert expected.keys() == found.keys() == {"logits", "masks"}
    for name, each in expected.items():
        torch.testing.assert_close(found[name], each)
