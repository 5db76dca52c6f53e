"""The two-layer perceptrons of transformer blocks: plain (https://arxiv.org/abs/2010.11929) and gated (2002.05202)."""

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu"]


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), OpenAI's in CLIP."""
    return x * (1.702 * x).sigmoid()


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "silu": F.silu,
}


class Mlp(nn.Module):
    """Two linear layers with an activation between them, on the last dimension."""

    def __init__(self, dim: int, *, hidden: int, activation: Activation = "gelu") -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.activate = ACTIVATIONS[activation]

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (..., C) -> (..., C)."""
        out: Tensor = self.fc2(self.activate(self.fc1(tokens)))
        return out


class GatedMlp(nn.Module):
    """A gate and a value from one layer, multiplied; SwiGLU where the activation is SiLU."""

    def __init__(
        self, dim: int, *, hidden: int, activation: Activation = "silu", norm_eps: float | None = None
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * hidden)
        self.norm = nn.Identity() if norm_eps is None else nn.LayerNorm(hidden, eps=norm_eps)
        self.fc2 = nn.Linear(hidden, dim)
        self.activate = ACTIVATIONS[activation]

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (..., C) -> (..., C)."""
        gate, value = self.fc1(tokens).chunk(2, dim=-1)
        out: Tensor = self.fc2(self.norm(self.activate(gate) * value))
        return out


def normed_mlp(tokens: Tensor, norm: nn.Module, mlp: Mlp | GatedMlp) -> Tensor:
    """tokens: (..., C) -> mlp(norm(tokens))."""
    out: Tensor = mlp(norm(tokens))
    return out
