"""One class for a whole picture or clip: a pool of what the backbone gives, and one linear layer."""

from typing import Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.contracts import HEADS, IGNORE, Backbone, Batch, Head, HeadConfig, Level, Outputs, Predictions, require
from vitdense.errors import UserError
from vitdense.layers.pool import AttentionPool
from vitdense.ops.resizing import full_precision


@HEADS.register("classify")
class ClassifyConfig(HeadConfig):
    """`pool` is the backbone's own vector, as published, the mean of its patch tokens, or an attention pool that is
    learnt here, of `num_heads`. `init_scale` divides nothing but the layer's first weights, as VideoMAE's does.
    """

    pool: Literal["vector", "mean", "attention"] = "vector"
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    num_heads: PositiveInt = 8
    init_scale: PositiveFloat = 1.0

    def build(self, levels: tuple[Level, ...]) -> Head:
        """Not from levels alone."""
        raise UserError(
            "head classify reads a backbone's vector or tokens, not its maps: give the backbone, as in "
            "create_head('classify', backbone)"
        )

    def build_for(self, backbone: Backbone) -> "Classify":
        """A head for this backbone; UserError without classes, or where its width has no such number of heads."""
        return Classify(self, backbone.embed_dim)


class Classify(Head):
    """What the backbone says of the whole -> `logits` (B, K)."""

    classifies = True

    def __init__(self, config: ClassifyConfig, width: int) -> None:
        super().__init__()
        if config.num_classes is None:
            raise UserError("head classify needs num_classes: give it, or take it from the data")
        if config.pool == "attention" and width % config.num_heads:
            raise UserError(f"num_heads is {config.num_heads}, which doesn't divide the backbone's width {width}")
        self.num_classes, self.label_smoothing = config.num_classes, config.label_smoothing
        self.reads: Literal["maps", "vector", "tokens"] = "vector" if config.pool == "vector" else "tokens"
        self.only_patches = config.pool == "mean"
        self.pool = {"vector": _Given, "mean": _Mean, "attention": lambda: _attention(width, config.num_heads)}[
            config.pool
        ]()
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(width, config.num_classes)
        nn.init.trunc_normal_(self.fc.weight, std=0.02 * config.init_scale)
        nn.init.zeros_(self.fc.bias)

    def look(self, backbone: Backbone, images: Tensor, batch: Batch | None = None) -> list[Tensor]:
        """images: (B, C, H, W) or (B, C, T, H, W), normalised -> the vector (B, C) or tokens (B, N, C); for a mean
        those of patches alone."""
        return [backbone.tokens(images).patches] if self.only_patches else super().look(backbone, images, batch)

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """[(B, C)] or [(B, N, C)] -> logits (B, K)."""
        return {"logits": self.fc(self.dropout(self.pool(features[0])))}

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """`loss_ce`, the mean over batch["labels"] (B,) but those of IGNORE; 0 where all are."""
        require(batch, "labels", "head classify learns from data with a label for each picture or clip")
        logits, labels = full_precision(outputs["logits"]), batch["labels"]
        loss = F.cross_entropy(
            logits, labels, ignore_index=IGNORE, label_smoothing=self.label_smoothing, reduction="sum"
        )
        return {"loss_ce": loss / (labels != IGNORE).sum().clamp_min(1)}

    def predict(self, outputs: Outputs, batch: Batch) -> Predictions:
        """Logits (K,) of each picture or clip, in float32 or better."""
        return list(full_precision(outputs["logits"]))

    def deploy(self, outputs: Outputs, size: tuple[int, int]) -> Outputs:
        """The logits."""
        return {"logits": outputs["logits"]}


class _Given(nn.Identity):
    """(B, C) as it is."""


class _Mean(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (B, N, C) -> (B, C)."""
        return torch.mean(tokens, dim=1)


def _attention(width: int, num_heads: int) -> nn.Module:
    return AttentionPool(width, num_heads=num_heads, mlp_ratio=4.0, norm_eps=1e-6, activation="gelu")
