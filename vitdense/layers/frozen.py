"""Batch norms that are frozen, statistics and affine, and folded into the convolutions before them, as detectors train
networks on few pictures at a time (DETR, Carion et al. 2020, https://arxiv.org/abs/2005.12872)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vitdense.layers.folding import conv_and_frozen_norm, factor_and_offset


class FrozenBatchNorm2d(nn.Module):
    """A batch norm whose every number is a buffer, under the names that they had, so that checkpoints load and return.

    `folded`: the convolution before it does its work already. `after` is what some networks put into their norms.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps, self.folded = norm.eps, False
        ones = torch.ones(norm.num_features, device=next(norm.buffers()).device)
        self.register_buffer("weight", ones if norm.weight is None else norm.weight.detach().clone())
        self.register_buffer("bias", torch.zeros_like(ones) if norm.bias is None else norm.bias.detach().clone())
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer.detach().clone())
        self.after = nn.Sequential(*norm.children())

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, C, H, W) -> the same shape."""
        if not self.folded:
            factor, offset = (each[:, None, None].to(maps.dtype) for each in factor_and_offset(_NO_BIAS, self))
            maps = maps * factor + offset
        out: Tensor = self.after(maps)
        return out


_NO_BIAS = nn.Conv2d(1, 1, 1, bias=False)
"""Stands before a norm that follows no convolution."""


class FoldedConv2d(nn.Conv2d):
    """A convolution that does the work of the frozen norm behind it; the norm's numbers stay in the norm."""

    norm: FrozenBatchNorm2d

    def __init__(self, conv: nn.Conv2d, norm: FrozenBatchNorm2d) -> None:
        shape = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
        rest = (conv.dilation, conv.groups, conv.bias is not None, conv.padding_mode)
        super().__init__(*shape, *rest, device="meta")  # type: ignore[arg-type]
        self.weight, self.bias = conv.weight, conv.bias
        self.__dict__["norm"] = norm  # beside the modules, so that its buffers have one name
        norm.folded = True

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, C, H, W) -> (B, C_out, H', W'), normed."""
        return conv_and_frozen_norm(maps, self, self.norm)


def freeze_norms(model: nn.Module, run: Callable[[], object]) -> int:
    """Every batch norm frozen, and folded where `run` of the model shows a plain convolution right before it; their
    number. The state keeps its names.
    """
    parents = {
        module: (parent, name)
        for parent in model.modules()
        for name, module in parent.named_children()
        if isinstance(module, nn.BatchNorm2d | nn.Conv2d)
    }
    pairs = _pairs(list(parents), run)
    norms = [module for module in parents if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        frozen = FrozenBatchNorm2d(norm)
        setattr(*parents[norm], frozen)
        conv = pairs.get(norm)
        if conv is not None:
            setattr(*parents[conv], FoldedConv2d(conv, frozen))
    return len(norms)


@torch.no_grad()
def _pairs(modules: list[nn.Module], run: Callable[[], object]) -> dict[nn.Module, nn.Conv2d]:
    """The convolution before each norm whose only input is what came out of it."""
    made: dict[int, tuple[Tensor, nn.Conv2d]] = {}  # keeps what came out, so that no other tensor has its number
    found: dict[nn.Module, nn.Conv2d] = {}
    calls: dict[nn.Module, int] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[module] = calls.get(module, 0) + 1
        if type(module) is nn.Conv2d and module.padding_mode == "zeros":
            made[id(output)] = (output, module)
        elif isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in made:
            found[module] = made[id(inputs[0])][1]

    hooks = [module.register_forward_hook(note) for module in modules]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    convs = list(found.values())
    return {norm: conv for norm, conv in found.items() if calls[norm] == calls[conv] == convs.count(conv) == 1}
