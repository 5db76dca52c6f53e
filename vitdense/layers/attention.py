"""Multi-head self-attention over all tokens (Vaswani et al., 2017, https://arxiv.org/abs/1706.03762)."""

from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Every token attends to every token; torch picks the kernel."""

    def __init__(self, dim: int, *, num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        assert dim % num_heads == 0, f"{dim} channels don't divide by {num_heads} heads"
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (B, N, C) -> (B, N, C)."""
        qkv = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, heads, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, N, d) each
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, N, C)
        out: Tensor = self.proj(mixed)
        return out
