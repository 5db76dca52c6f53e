"""Swin as mmseg and Microsoft's code for dense tasks publish it: other names, another order of merged channels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformer

from vitdense.contracts import Backbone

SINGLE, DOUBLE = 1e-5, 1e-9
Enliven = Callable[[nn.Module], nn.Module]
Fill = Callable[..., Backbone]
Picture = Callable[..., Tensor]
SMALL = {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 4)}

# All of mmseg's names of parts, as regards those of torchvision's blocks.
RENAMED = {
    "attn.relative_position_bias_table": "attn.w_msa.relative_position_bias_table",
    "attn.relative_position_index": "attn.w_msa.relative_position_index",
    "attn.qkv": "attn.w_msa.qkv",
    "attn.proj": "attn.w_msa.proj",
    "mlp.0": "ffn.layers.0.0",
    "mlp.3": "ffn.layers.1",
}


class UnfoldMerging(nn.Module):
    """Merges patches as mmseg does: nn.Unfold gathers four neighbours for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        height, width = maps.shape[1:3]
        maps = nn.functional.pad(maps.permute(0, 3, 1, 2), (0, width % 2, 0, height % 2))
        merged = nn.functional.unfold(maps, kernel_size=2, stride=2).transpose(1, 2)
        out: Tensor = self.reduction(self.norm(merged))
        return out.view(len(maps), maps.shape[2] // 2, -1, out.shape[-1])


class DenseSwin(nn.Module):
    """torchvision's blocks between mmseg's mergings, and a norm for each output."""

    def __init__(self) -> None:
        super().__init__()
        inner = SwinTransformer([4, 4], 16, [2, 2, 2, 2], [1, 2, 2, 4], [7, 7], stochastic_depth_prob=0.0)
        self.features: Any = inner.features
        for i in range(3):
            self.features[2 * i + 2] = UnfoldMerging(16 * 2**i)
        self.norms = nn.ModuleList(nn.LayerNorm(16 * 2**i) for i in range(4))

    def forward(self, images: Tensor) -> list[Tensor]:
        x = nn.functional.pad(images, (0, -images.shape[-1] % 4, 0, -images.shape[-2] % 4))
        maps = []
        for i, part in enumerate(self.features):
            x = part(x)
            if i % 2:
                maps.append(self.norms[i // 2](x).permute(0, 3, 1, 2))
        return maps

    def as_mmseg(self) -> dict[str, Tensor]:
        """The same tensors under mmseg's names, below `backbone.`."""
        named = {}
        for key, tensor in self.state_dict().items():
            part, place, *rest = key.split(".")
            inner = ".".join(rest)
            if part == "norms":
                name = f"norm{place}.{inner}"
            elif place == "0":
                name = f"patch_embed.{ {'0': 'projection', '2': 'norm'}[rest[0]] }.{rest[1]}"
            elif int(place) % 2 == 0:
                name = f"stages.{int(place) // 2 - 1}.downsample.{inner}"
            else:
                for theirs, mmsegs in RENAMED.items():
                    inner = inner.replace(theirs, mmsegs, 1) if mmsegs not in inner else inner
                name = f"stages.{int(place) // 2}.blocks.{inner}"
            named[f"backbone.{name}"] = tensor
        return named


def apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    assert [a.shape for a in ours] == [b.shape for b in theirs]
    assert max(float(b.abs().mean()) for b in theirs) > 0.3, "the reference carries no signal"
    return max(float((a - b).abs().max() / b.abs().mean().clamp(min=1)) for a, b in zip(ours, theirs, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("size", [(256, 320), (250, 333)])
def test_maps_equal_those_of_mmsegs_mergings(
    size: tuple[int, int], enliven: Enliven, fill: Fill, picture: Picture
) -> None:
    theirs: Any = enliven(DenseSwin())
    state = theirs.as_mmseg()
    assert "backbone.stages.1.blocks.0.attn.w_msa.qkv.weight" in state
    assert "backbone.stages.1.blocks.0.ffn.layers.0.0.weight" in state
    ours = fill("swin_tiny", {"state_dict": {**state, "decode_head.conv_seg.bias": torch.ones(150)}}, SMALL)
    assert ours.load_report is not None
    assert ours.load_report.family == "mmseg"
    assert not ours.load_report.fresh
    assert ours.config is not None
    assert ours.config.model_dump()["always_shift"]
    images = picture(*size)
    assert apart(ours(images), theirs(images)) < SINGLE
    assert apart(ours.double()(images.double()), theirs.double()(images.double())) < DOUBLE


@torch.no_grad()
def test_microsofts_code_for_dense_tasks_has_norms_by_number(enliven: Enliven, fill: Fill, picture: Picture) -> None:
    theirs: Any = enliven(DenseSwin())
    reference = fill("swin_tiny", theirs.as_mmseg(), SMALL)
    state: dict[str, Tensor] = {}
    for key, tensor in reference.state_dict().items():
        part, _, rest = key.partition(".")
        number, _, inner = rest.partition(".")
        if part == "norms":
            state[f"norm{number}.{inner}"] = tensor
        elif inner.startswith("downsample"):
            state[f"layers.{int(number) - 1}.{inner}"] = tensor
        else:
            state[key] = tensor
    ours = fill("swin_tiny", {"state_dict": {f"backbone.{key}": tensor for key, tensor in state.items()}}, SMALL)
    assert ours.load_report is not None
    assert ours.load_report.family == "official"
    assert not ours.load_report.fresh
    images = picture(250, 333)
    assert apart(ours(images), theirs(images)) < SINGLE
