"""Attention under a bias or mask, kept off the kernels that are known to get it wrong."""

from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

# cuDNN's kernel reads a float32 bias of half-precision queries as if it were halves, and gives NaN in the backward
# pass for some lengths (https://github.com/pytorch/pytorch/issues/196678); FlashAttention takes no bias at all.
SOUND = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def masked_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *, scale: float | None = None) -> Tensor:
    """q, k, v: (B, heads, N, d), `bias` added to the logits: (B or 1, heads or 1, N, N) -> (B, heads, N, d)."""
    bias = bias.to(q.dtype)
    if not q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    with sdpa_kernel(SOUND):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
