"""DINOv3 under its authors' names, written down once more."""

import math

import torch
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import Mlp
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn
from torch.nn import functional as F


class OfficialGate(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(48, hidden), nn.Linear(48, hidden), nn.Linear(hidden, 48)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w3(F.silu(self.w1(x)) * self.w2(x))
        return out


class MaskedLinear(nn.Linear):
    """Biases of all but the keys."""

    def __init__(self) -> None:
        super().__init__(48, 144)
        self.bias_mask = nn.Buffer(torch.cat([torch.ones(48), torch.zeros(48), torch.ones(48)]))

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias * self.bias_mask)


class OfficialAttention(nn.Module):
    def __init__(self, *, biased: bool) -> None:
        super().__init__()
        self.qkv: nn.Linear = MaskedLinear() if biased else nn.Linear(48, 144, bias=False)
        self.proj = nn.Linear(48, 48)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 3, 16).permute(2, 0, 3, 1, 4)  # (B, heads, N, 16) each

        def turn(heads: Tensor) -> Tensor:
            patches = heads[:, :, 5:]
            turned = torch.cat([-patches[..., 8:], patches[..., :8]], dim=-1)
            return torch.cat([heads[:, :, :5], patches * cosines + turned * sines], dim=2)

        attention = (turn(q) @ turn(k).mT / 4).softmax(dim=-1)
        out: Tensor = self.proj((attention @ v).transpose(1, 2).flatten(2))
        return out


class OfficialBlock(nn.Module):
    def __init__(self, size: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(48, eps=1e-5), nn.LayerNorm(48, eps=1e-5)
        self.attn = OfficialAttention(biased=size != "7b")
        self.mlp: nn.Module = Mlp(48, 192) if size == "small" else OfficialGate(96 if size == "7b" else 192)
        self.ls1, self.ls2 = LayerScale(48), LayerScale(48)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), cosines, sines))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class Rope(nn.Module):
    """Turns by the cells' centres in -1..1, counted in float32, by the stored periods in their precision."""

    def __init__(self) -> None:
        super().__init__()
        self.periods = nn.Buffer((100.0 ** (torch.arange(4) / 4)).bfloat16().float())

    def forward(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        down, across = (2 * (torch.arange(n).float() + 0.5) / n - 1 for n in (height, width))
        places = torch.stack(torch.meshgrid(down, across, indexing="ij"), dim=-1).flatten(0, 1)  # (h * w, 2)
        angles = (2 * math.pi * places[:, :, None].to(self.periods) / self.periods).flatten(1).tile(2)  # (h * w, 16)
        return angles.cos(), angles.sin()


class Official(nn.Module):
    """The authors' network after its paper, under their names."""

    def __init__(self, size: str) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(None, 16, embed_dim=48, dynamic_img_pad=True)
        self.cls_token, self.mask_token = nn.Parameter(torch.zeros(1, 1, 48)), nn.Parameter(torch.zeros(1, 48))
        self.storage_tokens = nn.Parameter(torch.zeros(1, 4, 48))
        self.rope_embed = Rope()
        self.blocks = nn.ModuleList(OfficialBlock(size) for _ in range(3))
        self.norm = nn.LayerNorm(48, eps=1e-5)
        if size == "7b":
            self.local_cls_norm = nn.LayerNorm(48, eps=1e-5)

    def forward(self, images: Tensor) -> list[Tensor]:
        grid = tuple(math.ceil(side / 16) for side in images.shape[2:])
        prefix = torch.cat([self.cls_token, self.storage_tokens], dim=1).expand(images.shape[0], -1, -1)
        x = torch.cat([prefix, self.patch_embed(images)], dim=1)
        tables = self.rope_embed(*grid)
        kept = []
        for block in self.blocks:
            x = block(x, *tables)
            kept.append(self.norm(x))
        return [*(kept[i][:, 5:].mT.unflatten(2, grid) for i in (0, 2)), kept[2], kept[2][:, 0]]
