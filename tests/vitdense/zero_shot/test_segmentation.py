"""Cells of zero-shot segmentation beside MaskCLIP's recipe, followed on open_clip's own tower."""

from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import vitdense
from vitdense.contracts import HEADS, Batch
from vitdense.errors import UserError
from vitdense.inference import InferenceConfig
from vitdense.model import Model
from vitdense.zero_shot.prompts import class_names, read_prompts
from vitdense.zero_shot.segmentation import build_segmenter

CLASSES = class_names("cat,fire engine,zebra,sky=sky|clouds")
PROMPTS = read_prompts("simple")


def cells_of(visual: Any, images: Tensor) -> Tensor:
    """images: (B, 3, H, W), normalised -> (B, h * w, D): in the last block each token keeps its own value, which is
    projected and added, and the MLP, the norm and the projection follow as ever."""
    taken: list[Tensor] = []
    last = visual.transformer.resblocks[-1]
    hook = last.register_forward_pre_hook(lambda _, given: taken.append(given[0]))
    visual(images)
    hook.remove()
    x = taken[0]
    weight, bias = last.attn.in_proj_weight.chunk(3)[2], last.attn.in_proj_bias.chunk(3)[2]
    x = x + last.attn.out_proj(F.linear(last.ln_1(x), weight, bias))
    x = x + last.mlp(last.ln_2(x))
    found: Tensor = visual.ln_post(x)[:, 1:] @ visual.proj
    return found


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_logits_of_cells_equal_maskclips(twins: Any, dtype: torch.dtype, atol: float) -> None:
    ours, theirs = twins.ours.to(dtype), twins.theirs.to(dtype)
    try:
        images = torch.rand(2, 3, 48, 48, dtype=dtype)
        cells = F.normalize(cells_of(theirs.visual, ours.normalise(images)), dim=-1)
        texts = [
            [template.replace("{}", word) for word in each.words for template in PROMPTS.templates] for each in CLASSES
        ]
        means = [theirs.encode_text(open_clip.SimpleTokenizer()(each), normalize=True).mean(0) for each in texts]
        weights = F.normalize(torch.stack(means), dim=-1)
        expected = (theirs.logit_scale.exp() * cells @ weights.T).view(2, 3, 3, 4).permute(0, 3, 1, 2)
        found = build_segmenter(ours, PROMPTS, CLASSES)({"images": images})["logits"]
        torch.testing.assert_close(found, expected, rtol=0, atol=atol)
        assert found.std() > 0.1
    finally:
        ours.float(), theirs.float()


@torch.no_grad()
def test_masks_are_those_of_the_enlarged_logits(twins: Any) -> None:
    """Sizes that the patches don't divide."""
    segmenter = build_segmenter(twins.ours, PROMPTS, CLASSES, InferenceConfig()).eval()
    picture = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    (mask,) = segmenter.predict([picture])
    images = torch.from_numpy(picture).permute(2, 0, 1)[None]
    logits = segmenter(Batch(images=images))["logits"]
    assert logits.shape == (1, 4, 4, 6)
    assert mask.shape == (61, 83)
    enlarged = F.interpolate(logits, size=(61, 83), mode="bilinear", align_corners=False)
    assert (enlarged.argmax(1)[0] == mask).double().mean() > 0.999
    assert len(mask.unique()) > 1
    assert segmenter.classes == ("cat", "fire engine", "zebra", "sky")


@torch.no_grad()
def test_windows_of_the_towers_own_size(twins: Any) -> None:
    inference = InferenceConfig(mode="sliding", short_side=72, window=48, stride=24)
    segmenter = build_segmenter(twins.ours, PROMPTS, CLASSES, inference).eval()
    (mask,) = segmenter.predict([np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)])
    assert mask.shape == (30, 50)


@torch.no_grad()
def test_a_tower_that_takes_the_mean_gives_cells_whose_mean_is_its_vector() -> None:
    backbone = vitdense.create_backbone("swin_nano", depths=[1, 1, 1, 1]).eval()
    head = HEADS.create("clip", {"text": {"name": "clip_text_nano", "context": 12}, "dim": 16}).build_for(backbone)
    model = Model(backbone, head).eval()
    segmenter = build_segmenter(model, PROMPTS, CLASSES)
    images = torch.rand(1, 3, 64, 96)
    patches, _, (height, width) = backbone.value_tokens(model.normalise(images))
    torch.testing.assert_close(patches.mean(1), backbone.embed(model.normalise(images)))
    assert segmenter({"images": images})["logits"].shape == (1, 4, height, width)
    assert segmenter.backbone.levels[0].stride == 32


def test_what_can_not_segment_is_told() -> None:
    backbone = vitdense.create_backbone("vit_nano_patch8", depth=1)
    coca = {"text": {"name": "coca_text_nano", "depth": 1}, "dim": 16}
    model = Model(backbone, HEADS.create("coca", coca).build_for(backbone))
    with pytest.raises(UserError, match="head Coca pools the tokens itself"):
        build_segmenter(model, PROMPTS, CLASSES)


def test_nothing_is_learnt(twins: Any) -> None:
    segmenter = build_segmenter(twins.ours, PROMPTS, CLASSES)
    with pytest.raises(UserError, match="zero-shot segmentation learns nothing"):
        segmenter.head.losses({}, Batch())
