"""CoCa's parts that look from one sequence at another (https://arxiv.org/abs/2205.01917): the pool over a picture's
tokens, and the decoder that writes captions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.contrastive.text_transformer import TextTransformerConfig, init_blocks
from vitdense.layers.attention import Surroundings
from vitdense.layers.block import runner
from vitdense.layers.mlp import Mlp, normed_mlp


class CrossAttention(nn.Module):
    """Queries of one sequence, keys and values of another."""

    def __init__(self, dim: int, context_dim: int, *, num_heads: int) -> None:
        super().__init__()
        assert dim % num_heads == 0, f"{dim} channels don't divide by {num_heads} heads"
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(context_dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """tokens: (B, N, C), context: (B, M, D) -> (B, N, C)."""
        q = self.q(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, d)
        k, v = self.kv(context).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class QueryPool(nn.Module):
    """Learned queries gather the tokens of a picture; the first stands for the whole, the others are read by a decoder.

    The tokens come normed from the backbone, so that the pool has no norm for them.
    """

    def __init__(self, dim: int, context_dim: int, *, num_heads: int, num_queries: int, norm_eps: float) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(num_queries, dim))
        self.norm_q = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = CrossAttention(dim, context_dim, num_heads=num_heads)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (B, N, D) -> (B, Q, C)."""
        query = self.norm_q(self.query)
        out: Tensor = self.attn(query.expand(tokens.shape[0], -1, -1), tokens)
        return out


class CrossBlock(nn.Module):
    """Cross-attention and MLP, each normed before and added; the other sequence has a norm of its own."""

    def __init__(self, config: TextTransformerConfig, context_dim: int) -> None:
        super().__init__()
        width, eps = config.width, config.layer_norm_eps
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.norm_kv = nn.LayerNorm(context_dim, eps=eps)
        self.attn = CrossAttention(width, context_dim, num_heads=config.num_heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, hidden=int(width * config.mlp_ratio), activation=config.activation)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """tokens: (B, N, C), context: (B, M, D) -> (B, N, C)."""
        tokens = tokens + self.attn(self.norm1(tokens), self.norm_kv(context))
        return normed_mlp(tokens, self.norm2, self.mlp, residual=True)


class CaptionDecoder(nn.Module):
    """Causal blocks and cross-attention by turns, from a text tower's states to what comes after each token."""

    def __init__(self, config: TextTransformerConfig, context_dim: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(config.block() for _ in range(config.depth))
        self.cross_blocks = nn.ModuleList(CrossBlock(config, context_dim) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.to_logits = nn.Linear(config.width, config.vocab, bias=False)
        self._run = runner(config.grad_checkpointing)
        init_blocks(self.blocks, config.width)
        init_blocks(self.cross_blocks, config.width)
        nn.init.normal_(self.to_logits.weight, std=config.width**-0.5)

    def forward(self, states: Tensor, context: Tensor) -> Tensor:
        """states: (B, L, C) of a text, not normed, context: (B, M, D) of a picture -> logits (B, L, vocab)."""
        around = Surroundings((1, states.shape[1]))
        for block, cross in zip(self.blocks, self.cross_blocks, strict=True):
            states = self._run(cross, self._run(block, states, around), context)
        logits: Tensor = self.to_logits(self.norm(states))
        return logits
