"""The two-layer perceptron of transformer blocks (ViT, https://arxiv.org/abs/2010.11929)."""

from torch import Tensor, nn
from torch.nn import functional as F


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, on the last dimension."""

    def __init__(self, dim: int, *, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (..., C) -> (..., C)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return out
