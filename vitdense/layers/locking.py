"""Towers that are used as they were trained, in whole or in part (LiT, https://arxiv.org/abs/2111.07991)."""

from torch import nn


def rest_where_frozen(module: nn.Module) -> None:
    """Evaluation mode for every part whose parameters are all frozen: no dropout, and norms keep their statistics."""
    own = list(module.parameters())
    if own and not any(parameter.requires_grad for parameter in own):
        module.eval()
        return
    for child in module.children():
        rest_where_frozen(child)
