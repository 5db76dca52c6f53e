"""Pictures and texts in one space: CLIP (https://arxiv.org/abs/2103.00020), SigLIP (https://arxiv.org/abs/2303.15343)."""

import math
from typing import Literal, Self

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from heads.contrastive.losses import clip_loss, distillation_loss, number_texts, siglip_loss
from heads.contrastive.towers import NamedText
from vitdense.contracts import (
    HEADS,
    Backbone,
    Batch,
    ContrastiveHead,
    Embeddings,
    Head,
    HeadConfig,
    Level,
    Outputs,
    Predictions,
    Tokenizer,
    require,
)
from vitdense.errors import UserError
from vitdense.layers.locking import rest_where_frozen

SIGLIP = {
    "loss": "siglip", "temperature": 0.1, "max_scale": None, "bias": -10.0, "text": {"name": "siglip_text_base"},
    "dim": 768, "image_projection": "none", "text_projection": "affine",
}  # fmt: skip


@HEADS.register("clip")
@HEADS.register("siglip", **SIGLIP)
class ClipConfig(HeadConfig):
    """`dim` is the width of the common space; `temperature` is where it starts, and 1 / temperature stays below
    `max_scale`, null for no bound. `bias` is what SigLIP adds to its logits at the start, null for none.

    A `locked` tower (https://arxiv.org/abs/2111.07991) is used as it is: all but its last `unlocked_layers` blocks and
    what comes after them have no gradient and stay in evaluation mode. Projections always learn.

    `same_captions`: a caption that stands twice in a step counts as a negative of the other's picture, as published, or
    is left out there.
    """

    text: NamedText
    dim: PositiveInt = 512
    loss: Literal["clip", "siglip"] = "clip"
    temperature: PositiveFloat = 0.07
    max_scale: PositiveFloat | None = 100.0
    bias: float | None = None
    image_projection: Literal["linear", "affine", "none"] = "linear"
    text_projection: Literal["linear", "affine", "none"] = "linear"
    locked: Literal["none", "image", "text"] = "none"
    unlocked_layers: NonNegativeInt = 0
    same_captions: Literal["negatives", "ignored"] = "negatives"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.unlocked_layers and self.locked == "none":
            raise ValueError("unlocked_layers are those of a locked tower: set locked to image or text")
        return self

    def build(self, levels: tuple[Level, ...]) -> Head:
        """Not from levels alone."""
        raise UserError(
            f"head {self.preset} reads a backbone's vector, not its maps: give the backbone, as in "
            f"create_head({self.preset!r}, backbone)"
        )

    def build_for(self, backbone: Backbone) -> "Clip":
        """A head for this backbone's `embed`; UserError where widths can't be brought together."""
        return Clip(self, backbone.embed_dim)

    def tokenizer(self) -> Tokenizer:
        """The text tower's."""
        return self.text.tokens()


class Clip(ContrastiveHead):
    """The backbone's vector and the text tower's, projected -> `image_embeddings` (B, D), `text_embeddings` (N, D),
    both of unit length, `logit_scale` and, where there is one, `logit_bias`."""

    reads: Literal["maps", "vector", "tokens"] = "vector"

    def __init__(self, config: ClipConfig, embed_dim: int) -> None:
        super().__init__()
        self.num_classes, self.loss, self.max_scale = 0, config.loss, config.max_scale
        self.frozen_backbone = config.locked == "image"
        self.unlocked_layers = config.unlocked_layers if self.frozen_backbone else 0
        self._text_config = config.text
        self.ignores_same = config.same_captions == "ignored"
        self.text = config.text.build()
        self.image_proj = projection(config.image_projection, embed_dim, config.dim, "image")
        self.text_proj = projection(config.text_projection, self.text.width, config.dim, "text")
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))
        self.logit_bias = None if config.bias is None else nn.Parameter(torch.tensor(config.bias))
        if config.locked == "text":
            self.text.lock(config.unlocked_layers)

    @property
    def tokenizer(self) -> Tokenizer:
        """The text tower's; UserError where its files are absent."""
        return self._text_config.tokens()

    def no_decay(self) -> set[str]:
        """The text tower's tables."""
        return {f"text.{name}" for name in self.text.no_decay()}

    def train(self, mode: bool = True) -> Self:
        """Training mode for what learns."""
        super().train(mode)
        rest_where_frozen(self.text)
        return self

    def encode_image(self, features: list[Tensor]) -> Tensor:
        """[(B, C)] -> (B, D), not normalised."""
        found: Tensor = self.image_proj(features[0])
        return found

    def encode_text(self, tokens: Tensor) -> Tensor:
        """tokens: (N, L) int64 -> (N, D), not normalised."""
        found: Tensor = self.text_proj(self.text(tokens))
        return found

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """[(B, C)] and batch["tokens"] (N, L) -> embeddings of unit length, scale and bias of their products."""
        self.bound_scale()
        outputs = {"image_embeddings": F.normalize(self.encode_image(features), dim=-1), **self.scale_and_bias()}
        if "tokens" in batch:
            outputs["text_embeddings"] = F.normalize(self.encode_text(batch["tokens"]), dim=-1)
        return outputs

    def bound_scale(self) -> None:
        """What the last step made too large goes back to the bound, as CLIP's authors have it (2.5; open_clip bounds it
        from below too); a clamp in the graph would stay without gradient there."""
        if self.training and self.max_scale is not None:
            with torch.no_grad():
                self.logit_scale.clamp_(max=math.log(self.max_scale))

    def scale_and_bias(self) -> Outputs:
        """What products of embeddings are multiplied with, and what is added to them, if anything."""
        outputs = {"logit_scale": self.logit_scale.exp()}
        if self.logit_bias is not None:
            outputs["logit_bias"] = self.logit_bias * 1
        return outputs

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """The picture and the text of a place in the batch belong together, all others don't."""
        if "text_embeddings" not in outputs:
            require(batch, "tokens", "a head that compares pictures with texts learns from captions")
        compare = clip_loss if self.loss == "clip" else siglip_loss
        losses = {
            f"loss_{self.loss}": compare(
                outputs["image_embeddings"],
                outputs["text_embeddings"],
                outputs["logit_scale"],
                outputs.get("logit_bias"),
                same=number_texts(batch["tokens"]) if self.ignores_same else None,
            )
        }
        if "teacher" in batch:
            losses["loss_distill"] = batch["teacher"]["weight"] * distillation_loss(outputs, batch["teacher"])
        return losses

    def predict(self, outputs: Outputs, batch: Batch) -> Predictions:
        """Embeddings of each picture and of its captions, if there are any."""
        images = outputs["image_embeddings"].float()
        texts = outputs.get("text_embeddings", images[:0]).float()
        counts = [len(captions) for captions in batch.get("captions", [[]] * len(images))]
        return [Embeddings(image, own) for image, own in zip(images, torch.split(texts, counts), strict=True)]


def projection(kind: Literal["linear", "affine", "none"], width: int, dim: int, tower: str) -> nn.Module:
    """From a tower's width to the common one."""
    if kind == "none":
        if width != dim:
            ways = f"set dim: {width} or {tower}_projection: linear"
            raise UserError(f"the {tower} tower is {width} wide and the common space {dim}: {ways}")
        return nn.Identity()
    layer = nn.Linear(width, dim, bias=kind == "affine")
    nn.init.normal_(layer.weight, std=width**-0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
