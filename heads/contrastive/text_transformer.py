"""The text transformers of CLIP (https://arxiv.org/abs/2103.00020), SigLIP (https://arxiv.org/abs/2303.15343) and CoCa
(https://arxiv.org/abs/2205.01917)."""

from typing import Any, Literal, Self

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from heads.contrastive.tokenizers import TokenizerName, Trim, create_tokenizer
from heads.contrastive.towers import TEXTS, TextConfig, TextTower
from vitdense.contracts import Tokenizer
from vitdense.errors import UserError
from vitdense.layers.attention import AttentionOptions, Surroundings
from vitdense.layers.block import Block, BlockOptions, runner
from vitdense.layers.mlp import Activation

SIGLIP: dict[str, Any] = {
    "causal": False,
    "pool": "last",
    "context": 64,
    "vocab": 32000,
    "activation": "gelu_tanh",
    "layer_norm_eps": 1e-6,
    "tokenizer": "siglip",
}
SIGLIP2: dict[str, Any] = {**SIGLIP, "vocab": 256000, "tokenizer": "siglip2"}
COCA: dict[str, Any] = {"pool": "class", "context": 76}
BASE: dict[str, Any] = {"width": 768, "depth": 12, "num_heads": 12}
LARGE: dict[str, Any] = {"width": 1024, "depth": 24, "num_heads": 16}


@TEXTS.register("clip_text_nano", width=64, depth=3, num_heads=2)
@TEXTS.register("clip_text_base", width=512, depth=12, num_heads=8)
@TEXTS.register("clip_text_large", **BASE)
@TEXTS.register("clip_text_huge", **LARGE)
@TEXTS.register("siglip_text_base", **BASE, **SIGLIP)
@TEXTS.register("siglip_text_large", **LARGE, **SIGLIP)
@TEXTS.register("siglip2_text_base", **BASE, **SIGLIP2)
@TEXTS.register("siglip2_text_large", **LARGE, **SIGLIP2)
@TEXTS.register("coca_text_nano", width=64, depth=3, num_heads=2, **COCA)
@TEXTS.register("coca_text_base", width=512, depth=12, num_heads=8, **COCA)
@TEXTS.register("coca_text_large", **BASE, **COCA)
class TextTransformerConfig(TextConfig):
    """`pool` "end" takes the token at the first `end_token`, or at the highest number where that is null, as OpenAI;
    "last" takes the last column; "class" a learned token behind the text, which sees no `pad_token`.

    A causal tower that pools at the end never looks behind it: tokens are trimmed to the longest text of a batch.
    open_clip's CoCa masks the token after each pad instead of the pad itself, and so do the weights that were trained
    with it: `shifted_pad_mask`.
    """

    width: PositiveInt
    depth: PositiveInt
    num_heads: PositiveInt
    context: PositiveInt = 77
    vocab: PositiveInt = 49408
    mlp_ratio: PositiveFloat = 4.0
    activation: Activation = "gelu"
    layer_norm_eps: PositiveFloat = 1e-5
    causal: bool = True
    pool: Literal["end", "last", "class"] = "end"
    end_token: NonNegativeInt | None = None
    pad_token: NonNegativeInt = 0
    shifted_pad_mask: bool = True
    tokenizer: TokenizerName = "clip"
    grad_checkpointing: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} doesn't divide by num_heads {self.num_heads}")
        if self.pool == "class" and not self.causal:
            raise ValueError("pool: class needs causal: true, as CoCa has it")
        return self

    @property
    def trims(self) -> bool:
        """Whether what stands behind the end of a text changes nothing."""
        return self.causal and self.pool == "end"

    def build(self) -> "TextTransformer":
        """A tower with fresh weights."""
        return TextTransformer(self)

    def tokens(self) -> Tokenizer:
        """The tokenizer whose tokens the tower reads, trimmed where the tower is."""
        trim: Trim = "end" if self.trims else None
        return create_tokenizer(
            self.tokenizer, context=self.context, vocab=self.vocab, trim=trim, end_token=self.end_token
        )

    def block(self) -> Block:
        """One block of the tower, or of a decoder like it."""
        options = BlockOptions(
            attention=AttentionOptions(dim=self.width, num_heads=self.num_heads),
            hidden=int(self.width * self.mlp_ratio),
            relations="masked" if self.pool == "class" else "causal" if self.causal else "none",
            activation=self.activation,
            norm_eps=self.layer_norm_eps,
        )
        return Block(options)


class TextTransformer(TextTower):
    """Pre-norm blocks over learned positions; the last norm is part of the tower, the projection is not."""

    def __init__(self, config: TextTransformerConfig) -> None:
        super().__init__()
        self.width, self.context, self.vocab = config.width, config.context, config.vocab
        self.end_token, self.pad_token, self.shift = config.end_token, config.pad_token, config.shifted_pad_mask
        has_class = config.pool == "class"
        self.token_embed = nn.Embedding(config.vocab, config.width)
        self.cls_token = nn.Parameter(torch.zeros(config.width)) if has_class else None
        self.pos_embed = nn.Parameter(torch.zeros(config.context + has_class, config.width))
        self.blocks = nn.ModuleList(config.block() for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self._pick = {"end": self._end, "last": _last, "class": _last}[config.pool]
        self._run = runner(config.grad_checkpointing)
        nn.init.normal_(self.token_embed.weight, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.01)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=0.01)
        init_blocks(self.blocks, config.width)

    @property
    def layers(self) -> nn.ModuleList:
        """The blocks."""
        return self.blocks

    def no_decay(self) -> set[str]:
        """The tables of tokens and positions."""
        return {*super().no_decay(), "pos_embed"}

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (N, L) int64, L at most the context -> (N, width)."""
        return self.pooled(self.hidden(tokens), tokens)

    def pooled(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """hidden: (N, L, width) of tokens (N, L) -> (N, width), normed."""
        out: Tensor = self.norm(self._pick(hidden, tokens))
        return out

    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens: (N, L) -> (N, L, width), not normed; behind them the class token, if there is one."""
        if tokens.ndim != 2 or tokens.shape[1] > self.context:
            raise UserError(f"expected tokens (N, {self.context} or fewer), given {tuple(tokens.shape)}")
        x: Tensor = self.token_embed(tokens)
        if self.cls_token is not None:
            x = torch.cat([x, self.cls_token.expand(x.shape[0], 1, -1)], dim=1)
        x = x + self.pos_embed[: x.shape[1]]
        around = Surroundings((1, x.shape[1]), () if self.cls_token is None else (self._mask(tokens),))
        for block in self.blocks:
            x = self._run(block, x, around)
        return x

    def _mask(self, tokens: Tensor) -> Tensor:
        """tokens: (N, L) -> (N, 1, L + 1, L + 1): which of the tokens and the class token each of them sees."""
        real = tokens != self.pad_token
        mark = real.new_ones(tokens.shape[0], 1)
        seen = torch.cat([mark, real] if self.shift else [real, mark], dim=1)  # (N, L + 1)
        order = torch.arange(seen.shape[1], device=tokens.device)
        return seen[:, None, None] & (order[:, None] >= order)

    def _end(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        return hidden[torch.arange(tokens.shape[0], device=tokens.device), self.ends(tokens)]

    def ends(self, tokens: Tensor) -> Tensor:
        """tokens: (N, L) -> (N,): where each text ends."""
        marks = tokens if self.end_token is None else (tokens == self.end_token).int()
        return marks.argmax(dim=1)


def _last(hidden: Tensor, tokens: Tensor) -> Tensor:
    return hidden[:, -1]


def init_blocks(blocks: nn.ModuleList, width: int) -> None:
    """As CLIP's authors start them: the deeper the tower, the smaller what each block adds."""
    narrow = width**-0.5
    for name, parameter in blocks.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
            nn.init.normal_(parameter, std=narrow * (2 * len(blocks)) ** -0.5)
        elif name.endswith(("qkv.weight", "attn.q.weight", "attn.kv.weight")):
            nn.init.normal_(parameter, std=narrow)
        elif name.endswith("mlp.fc1.weight"):
            nn.init.normal_(parameter, std=(2 * width) ** -0.5)
