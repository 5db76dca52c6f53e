"""open_clip's picture towers behind our contract: true levels, their own numbers, whole checkpoints."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

import vitdense
from vitdense.backbones.alignment import measure_alignment
from vitdense.errors import UserError


@pytest.mark.parametrize(("name", "strides"), [("ViT-B-32", (32,) * 4), ("RN50", (4, 8, 16, 32))])
def test_levels_are_true_and_aligned_at_any_size(name: str, strides: tuple[int, ...]) -> None:
    backbone = vitdense.create_backbone(f"open_clip/{name}").eval()
    assert tuple(level.stride for level in backbone.levels) == strides
    for size in ((224, 224), (250, 333), (64, 96)):
        maps = backbone(torch.randn(1, 3, *size))
        promised = [(1, each.channels, *(-(-side // each.stride) for side in size)) for each in backbone.levels]
        assert [tuple(each.shape) for each in maps] == promised
    torch.autograd.backward([each.square().mean() for each in maps])
    assert all(each.grad is None or each.grad.isfinite().all() for each in backbone.parameters())
    verdicts = [each.verdict for each in measure_alignment(backbone, (186, 250))]
    assert verdicts[0] == "yes"
    assert "no" not in verdicts


@torch.no_grad()
def test_a_whole_clip_gives_its_picture_tower(tmp_path: Path) -> None:
    theirs: Any = open_clip.create_model("ViT-B-32", pretrained=None).eval()
    for parameter in theirs.visual.parameters():
        parameter.normal_(std=0.03)
    torch.save(theirs.state_dict(), tmp_path / "clip.pt")
    ours = vitdense.create_backbone("open_clip/ViT-B-32", weights=tmp_path / "clip.pt").eval()
    images = torch.randn(1, 3, 224, 224)
    expected = theirs.encode_image(images)
    torch.testing.assert_close(ours.embed(images) @ theirs.visual.proj, expected, atol=1e-5, rtol=1e-5)
    assert ours.load_report is not None
    assert any(key.startswith("transformer.") for key in ours.load_report.left_out)


def test_refusals_say_why() -> None:
    with pytest.raises(UserError, match="ViT-B-32"):
        vitdense.create_backbone("open_clip/ViT-B-23")
    with pytest.raises(UserError, match="has no published weights 'nobody'"):
        vitdense.create_backbone("open_clip/ViT-B-32", weights="open_clip/ViT-B-32/nobody")
    with pytest.raises(UserError, match=r"hf download|fetch"):
        vitdense.create_backbone("open_clip/ViT-B-32", weights="open_clip/ViT-B-32/laion2b_e16")
