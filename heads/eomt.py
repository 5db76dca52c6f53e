"""EoMT: queries that pass through the last blocks of a plain ViT beside its patches, and become a class and a mask each
(Kerssies et al. 2025, https://arxiv.org/abs/2503.19108)."""

import math
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from heads.mask_classification import MaskClassificationConfig, MaskClassificationHead
from vitdense.contracts import HEADS, Backbone, Batch, Level, Outputs
from vitdense.errors import UserError
from vitdense.layers.block import run_again_in_backward
from vitdense.ops.resizing import resize

_POWER = 0.9


@HEADS.register("eomt")
class EomtConfig(MaskClassificationConfig):
    """EoMT as published: `num_queries` pass through the last `blocks`; patches are upscaled by 2 for `upscale_blocks`
    times, None: to a stride of 4 or a little above.

    Before each of the blocks masks are read off, which in training limit what patches a query may attend to. `masking`
    "annealed": less and less, block after block: for block i of n the share of queries that are limited falls from 1 to
    0 between the shares (i + 1) / (n + 2) and (i + 2) / (n + 2) of training, and in evaluation none are. "always": all
    are, in evaluation too.
    """

    num_queries: PositiveInt = 200
    blocks: PositiveInt = 4
    upscale_blocks: PositiveInt | None = None
    masking: Literal["annealed", "always"] = "annealed"

    def build(self, levels: tuple[Level, ...]) -> "Eomt":
        """Raises UserError: maps are not enough."""
        raise UserError(
            "eomt puts queries into the blocks of a backbone: build it for the backbone, not for its levels"
        )

    def build_for(self, backbone: Backbone) -> "Eomt":
        """An EoMT for this backbone; UserError where it is no plain ViT, or too shallow."""
        if backbone.guest_blocks < self.blocks:
            given = "behind an adapter" if backbone.adapter_config is not None else f"in {type(backbone).__name__}"
            raise UserError(
                f"eomt needs {self.blocks} blocks that its queries pass through, and {given} there are "
                f"{backbone.guest_blocks}: take a plain ViT without windows and an adapter, or head mask_transformer"
            )
        return Eomt(self, width=backbone.embed_dim, patch=backbone.levels[0].stride)


class Upscale(nn.Module):
    """Twice the size: a transposed convolution, GELU, a depthwise convolution, and a norm of each cell.

    All but the first, which is nearly all of the work, is done again on the way back, instead of being kept.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, C, h, w) -> (B, C, 2h, 2w)."""
        wide = self.conv1(maps)
        return run_again_in_backward(self._refine, wide) if torch.is_grad_enabled() else self._refine(wide)

    def _refine(self, wide: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.conv2(F.gelu(wide)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return normed


class MaskHead(nn.Module):
    """Three linear layers with GELU between them, from queries to what makes masks of pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = (nn.Linear(width, width) for _ in range(3))

    def forward(self, queries: Tensor) -> Tensor:
        """queries: (B, Q, C) -> (B, Q, C)."""
        out: Tensor = self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(queries)))))
        return out


class Eomt(MaskClassificationHead):
    """The last blocks of a ViT -> `logits` (B, Q, K + 1) and `masks` (B, Q, h, w); in training those that were read off
    before each of the blocks too, as the losses read them."""

    reads = "blocks"
    config: EomtConfig

    def __init__(self, config: EomtConfig, *, width: int, patch: int) -> None:
        super().__init__(config)
        steps = config.upscale_blocks or max(1, int(math.log2(patch)) - 2)
        self.blocks, self.annealed = config.blocks, config.masking == "annealed"
        self.query = nn.Embedding(config.num_queries, width)
        self.upscale = nn.Sequential(*(Upscale(width) for _ in range(steps)))
        self.mask_head = MaskHead(width)
        self.class_predictor = nn.Linear(width, self.num_classes + 1)

    def look(self, backbone: Backbone, images: Tensor, batch: Batch | None = None) -> list[Tensor]:
        """images: (B, C, H, W), normalised -> logits (B, Q, K + 1), embeddings (B, Q, C) and pixels (B, C, h, w) of
        each time they are read off, one after the other. Of the batch `progress` says how far training is; none: at 0.
        """
        passing = _Queries(self, (batch or {}).get("progress"))
        queries, tokens = backbone.forward_with(images, passing)
        assert len(tokens.grid) == 2
        return [*passing.found, *self.read_off(queries, tokens.patches, (tokens.grid[0], tokens.grid[1]))]

    def read_off(self, queries: Tensor, patches: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """queries: (B, Q, C), patches: (B, h * w, C), both normed -> logits, embeddings and pixels."""
        maps = torch.unflatten(patches.mT, 2, grid)
        return self.class_predictor(queries), self.mask_head(queries), self.upscale(maps)

    def chance(self, block: int, progress: Tensor) -> Tensor:
        """(): the share of queries whose mask limits them before a block, at a share of training."""
        start, length = (block + 1) / (self.blocks + 2), 1 / (self.blocks + 2)
        return (1 - (progress - start) / length).clamp(0, 1) ** _POWER

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """What `look` gives -> outputs as of the class."""
        logits, embeddings, pixels = features[0::3], features[1::3], features[2::3]
        if not self.training:
            return self.answer(logits[-1], embeddings[-1], pixels[-1], batch)
        outputs = {
            "logits": logits[-1],
            "layer_logits": torch.stack(logits),
            "mask_embeddings": torch.stack(embeddings),
        }
        return outputs | {f"pixel_embeddings_{index}": each for index, each in enumerate(pixels)}

    def no_decay(self) -> set[str]:
        """The queries."""
        return {"query.weight"}


class _Queries:
    """A head's queries on their way through a backbone, and what was read off on the way."""

    def __init__(self, head: Eomt, progress: Tensor | None) -> None:
        self.head, self.progress = head, progress
        self.blocks, self.looks = head.blocks, head.training or not head.annealed
        self.found: list[Tensor] = []

    def enter(self, patches: Tensor) -> Tensor:
        """patches: (B, N, C) -> the same queries for all, (B, Q, C)."""
        return self.head.query.weight.to(patches.dtype).expand(patches.shape[0], -1, -1)

    def visible(self, block: int, guests: Tensor, patches: Tensor, grid: tuple[int, ...]) -> Tensor | None:
        """guests: (B, Q, C), patches: (B, h * w, C) -> where each query's mask is, (B, Q, h * w) bool; everywhere for
        those that aren't limited any more."""
        rows, columns = grid
        logits, embeddings, pixels = self.head.read_off(guests, patches, (rows, columns))
        self.found += [logits, embeddings, pixels]
        # Masks are products with pixels, so that resized masks are products with resized pixels.
        small = resize(pixels.detach(), (rows, columns)).flatten(2)
        seen = embeddings.detach() @ small > 0
        if self.head.annealed and self.progress is not None:
            drawn = torch.rand(seen.shape[:2], device=seen.device)
            seen = seen | (drawn > self.head.chance(block, self.progress).to(drawn))[..., None]
        return seen
