"""The text transformers of CLIP (https://arxiv.org/abs/2103.00020) and SigLIP (https://arxiv.org/abs/2303.15343)."""

from typing import Any, Literal

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from heads.contrastive.tokenizers import TokenizerName, create_tokenizer
from heads.contrastive.towers import TEXTS, TextConfig, TextTower
from vitdense.contracts import Tokenizer
from vitdense.errors import UserError
from vitdense.layers.attention import AttentionOptions
from vitdense.layers.block import Block, BlockOptions, run, run_again_in_backward
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


@TEXTS.register("clip_text_nano", width=64, depth=3, num_heads=2)
@TEXTS.register("clip_text_base", width=512, depth=12, num_heads=8)
@TEXTS.register("clip_text_large", width=768, depth=12, num_heads=12)
@TEXTS.register("clip_text_huge", width=1024, depth=24, num_heads=16)
@TEXTS.register("siglip_text_base", width=768, depth=12, num_heads=12, **SIGLIP)
@TEXTS.register("siglip_text_large", width=1024, depth=24, num_heads=16, **SIGLIP)
class TextTransformerConfig(TextConfig):
    """`pool` "end" takes the token at the first `end_token`, or at the highest number where that is null, as OpenAI.

    A causal tower that pools there never looks behind the end: its tokens are trimmed to the longest text of a batch.
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
    pool: Literal["end", "last"] = "end"
    end_token: NonNegativeInt | None = None
    tokenizer: TokenizerName = "clip"
    grad_checkpointing: bool = False

    @property
    def trims(self) -> bool:
        """Whether what stands behind the end of a text changes nothing."""
        return self.causal and self.pool == "end"

    def build(self) -> "TextTransformer":
        """A tower with fresh weights."""
        return TextTransformer(self)

    def tokens(self) -> Tokenizer:
        """The tokenizer whose tokens the tower reads, trimmed where the tower is."""
        return create_tokenizer(self.tokenizer, context=self.context, vocab=self.vocab, trim=self.trims)


class TextTransformer(TextTower):
    """Pre-norm blocks over learned positions; the last norm is part of the tower, the projection is not."""

    def __init__(self, config: TextTransformerConfig) -> None:
        super().__init__()
        self.width, self.context, self.vocab = config.width, config.context, config.vocab
        self.pool, self.end_token, self.trims = config.pool, config.end_token, config.trims
        self.token_embed = nn.Embedding(config.vocab, config.width)
        self.pos_embed = nn.Parameter(torch.zeros(config.context, config.width))
        attention = AttentionOptions(dim=config.width, num_heads=config.num_heads)
        options = BlockOptions(
            attention=attention,
            hidden=int(config.width * config.mlp_ratio),
            relations="causal" if config.causal else "none",
            activation=config.activation,
            norm_eps=config.layer_norm_eps,
        )
        self.blocks = nn.ModuleList(Block(options) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self._run = run_again_in_backward if config.grad_checkpointing else run
        self._init_weights(config)

    def _init_weights(self, config: TextTransformerConfig) -> None:
        """As CLIP's authors start them: the deeper the tower, the smaller what each block adds."""
        nn.init.normal_(self.token_embed.weight, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.01)
        width = config.width**-0.5
        for name, parameter in self.blocks.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
                nn.init.normal_(parameter, std=width * (2 * config.depth) ** -0.5)
            elif name.endswith("qkv.weight"):
                nn.init.normal_(parameter, std=width)
            elif name.endswith("mlp.fc1.weight"):
                nn.init.normal_(parameter, std=(2 * config.width) ** -0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (N, L) int64, L at most the context -> (N, width)."""
        if tokens.ndim != 2 or tokens.shape[1] > self.context:
            raise UserError(f"expected tokens (N, {self.context} or fewer), given {tuple(tokens.shape)}")
        x: Tensor = self.norm(self.hidden(tokens))
        if self.pool == "last":
            return x[:, -1]
        return x[torch.arange(len(tokens), device=tokens.device), self.ends(tokens)]

    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens: (N, L) -> (N, L, width), not normed."""
        x: Tensor = self.token_embed(tokens) + self.pos_embed[: tokens.shape[1]]
        around = self.blocks[0].survey((1, tokens.shape[1]), x)  # type: ignore[operator]
        for block in self.blocks:
            x = self._run(block, x, around)
        return x

    def ends(self, tokens: Tensor) -> Tensor:
        """tokens: (N, L) -> (N,): where each text ends."""
        marks = tokens if self.end_token is None else (tokens == self.end_token).int()
        return marks.argmax(dim=1)
