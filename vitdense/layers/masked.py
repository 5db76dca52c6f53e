"""Attention with a bias on its logits, by kernels that are right."""

from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def masked_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """q, k, v: (B, heads, N, d), bias broadcastable to (B, heads, N, N) -> (B, heads, N, d)."""
    bias = bias.to(q.dtype)
    if not q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    # cuDNN's kernel gives NaN gradients with a mask at some lengths (pytorch issue 196678), and flash takes none.
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
