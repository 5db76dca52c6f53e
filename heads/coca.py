"""Contrastive captioner: pictures and texts in one space, and captions of pictures (https://arxiv.org/abs/2205.01917)."""

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from heads.clip import Clip, ClipConfig
from heads.contrastive.captioning import CaptionDecoder, QueryPool
from heads.contrastive.text_transformer import TextTransformer, TextTransformerConfig
from heads.contrastive.tokenizers import TrimmedTokenizer
from vitdense.contracts import HEADS, Backbone, Batch, Outputs, require
from vitdense.errors import UserError


@HEADS.register("coca", text={"name": "coca_text_base"})
class CocaConfig(ClipConfig):
    """As open_clip builds it: `num_queries` pool the picture's tokens, of which the first is compared with texts and
    the others are read by a decoder of `decoder_depth` blocks, as wide as the text tower.

    `text` needs pool: class. The two losses are weighted by `contrastive_weight` and `caption_weight`; captions begin
    with `start_token` and end with `stop_token`.
    """

    num_queries: PositiveInt = 256
    pool_heads: PositiveInt = 8
    pool_norm_eps: PositiveFloat = 1e-5
    decoder_depth: PositiveInt = 12
    decoder_heads: PositiveInt = 8
    contrastive_weight: NonNegativeFloat = 1.0
    caption_weight: NonNegativeFloat = 2.0
    start_token: NonNegativeInt = 49406
    stop_token: NonNegativeInt = 49407

    @model_validator(mode="after")
    def _check_parts(self) -> "CocaConfig":
        if self.num_queries < 2:
            raise ValueError(f"num_queries is {self.num_queries}, and the decoder reads all but the first: 2 or more")
        if self.dim % self.pool_heads:
            raise ValueError(f"dim {self.dim} doesn't divide by pool_heads {self.pool_heads}")
        if not isinstance(self.text, TextTransformerConfig) or self.text.pool != "class":
            raise ValueError(f"text {self.text.preset} has no class token: take coca_text_base, or set its pool: class")
        return self

    def build_for(self, backbone: Backbone) -> "Coca":
        """A head for this backbone's `tokens`; UserError where widths can't be brought together."""
        return Coca(self, backbone.embed_dim)

    def decoder(self) -> CaptionDecoder:
        """A decoder for the text tower's states."""
        assert isinstance(self.text, TextTransformerConfig)
        if self.text.width % self.decoder_heads:
            raise UserError(f"decoder_heads is {self.decoder_heads}, and the text tower is {self.text.width} wide")
        shape = {"depth": self.decoder_depth, "num_heads": self.decoder_heads, "pool": "end"}
        return CaptionDecoder(self.text.model_copy(update=shape), self.dim)


class Coca(Clip):
    """The backbone's tokens -> what `Clip` gives, and `caption_logits` (B, L - 1, vocab): what comes after each token,
    where every picture has one text."""

    reads = "tokens"
    text: TextTransformer

    def __init__(self, config: CocaConfig, embed_dim: int) -> None:
        super().__init__(config, config.dim)
        self.weights = {f"loss_{config.loss}": config.contrastive_weight, "loss_caption": config.caption_weight}
        self.start_token, self.stop_token = config.start_token, config.stop_token
        eps = config.pool_norm_eps
        self.pool = QueryPool(
            config.dim, embed_dim, num_heads=config.pool_heads, num_queries=config.num_queries, norm_eps=eps
        )
        self.norm = nn.LayerNorm(config.dim, eps=eps)
        self.decoder = config.decoder()

    def no_decay(self) -> set[str]:
        """The text tower's tables, and the queries."""
        return {*super().no_decay(), "pool.query"}

    def gather(self, features: list[Tensor]) -> Tensor:
        """[(B, N, C)], normed -> (B, num_queries, dim)."""
        states: Tensor = self.norm(self.pool(features[0]))
        return states

    def encode_image(self, features: list[Tensor]) -> Tensor:
        """[(B, N, C)] -> (B, D), not normalised."""
        found: Tensor = self.image_proj(self.gather(features)[:, 0])
        return found

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """[(B, N, C)] and batch["tokens"] (N, L) -> embeddings of unit length, their scale, and logits of captions."""
        self.bound_scale()
        states = self.gather(features)
        outputs = {"image_embeddings": F.normalize(self.image_proj(states[:, 0]), dim=-1), **self.scale_and_bias()}
        if "tokens" in batch:
            tokens = batch["tokens"]
            hidden = self.text.hidden(tokens)  # (N, L + 1, C), the class token last
            outputs["text_embeddings"] = F.normalize(self.text_proj(self.text.pooled(hidden, tokens)), dim=-1)
            if tokens.shape[0] == states.shape[0]:
                outputs["caption_logits"] = self.decoder(hidden[:, :-2], states[:, 1:])
        return outputs

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Of the comparison, and the mean over all tokens of captions that are no padding."""
        require(batch, "tokens", "head coca learns from captions")
        targets = batch["tokens"][:, 1:].flatten()
        logits = outputs["caption_logits"].flatten(0, 1)
        found = super().losses(outputs, batch)
        found["loss_caption"] = F.cross_entropy(logits, targets, ignore_index=self.text.pad_token)
        return {name: loss * self.weights.get(name, 1.0) for name, loss in found.items()}

    @torch.no_grad()
    def caption_tokens(self, features: list[Tensor], max_length: int | None = None) -> Tensor:
        """[(B, N, C)] -> (B, L) int64: from the start token on always the likeliest, padding behind the stop token."""
        context = self.gather(features)[:, 1:]
        tokens = torch.full((len(context), 1), self.start_token, device=context.device)
        done = torch.zeros(len(context), dtype=torch.bool, device=context.device)
        for _ in range(min(max_length or self.text.context, self.text.context) - 1):
            following = self.decoder(self.text.hidden(tokens)[:, :-1], context)[:, -1].argmax(dim=-1)
            following = following.masked_fill(done, self.text.pad_token)
            tokens = torch.cat([tokens, following[:, None]], dim=1)
            done |= following == self.stop_token
            if bool(done.all()):
                break
        return tokens

    def caption(self, features: list[Tensor], max_length: int | None = None) -> list[str]:
        """[(B, N, C)] -> a caption for each picture."""
        tokenizer = self.tokenizer
        assert isinstance(tokenizer, TrimmedTokenizer)
        rows = self.caption_tokens(features, max_length).tolist()
        ends = [row.index(self.stop_token) if self.stop_token in row else len(row) for row in rows]
        return [tokenizer.decode(row[1:end]) for row, end in zip(rows, ends, strict=True)]
