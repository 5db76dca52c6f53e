"""Attention pooling: one learned query gathers the tokens of a picture (SigLIP, https://arxiv.org/abs/2303.15343)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.layers.mlp import Activation, Mlp


class AttentionPool(nn.Module):
    """A learned query attends to all tokens; an MLP follows, with a residual connection."""

    def __init__(self, dim: int, *, num_heads: int, mlp_ratio: float, norm_eps: float, activation: Activation) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.latent = nn.Parameter(torch.zeros(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, hidden=int(dim * mlp_ratio), activation=activation)
        nn.init.trunc_normal_(self.latent, std=dim**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (B, N, C) -> (B, C)."""
        batch = tokens.shape[0]
        q = self.q(self.latent.expand(batch, -1, -1)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(tokens).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        pooled = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))  # (B, 1, C)
        pooled = pooled + self.mlp(self.norm(pooled))
        out: Tensor = pooled[:, 0]  # (B, C)
        return out

    def values(self, tokens: Tensor) -> Tensor:
        """tokens: (B, N, C) -> (B, N, C): what `forward` gives of each token alone."""
        pooled = self.proj(self.kv(tokens).chunk(2, dim=-1)[1])
        out: Tensor = pooled + self.mlp(self.norm(pooled))
        return out
