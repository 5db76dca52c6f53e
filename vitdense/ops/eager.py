"""When an operation may leave torch's own road: work in pieces, write in place, and bring its own backward pass."""

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


def runs_eagerly(*tensors: Tensor) -> bool:
    """False while a graph is traced, under torch.func, forward-mode AD or a dispatch mode, and for unusual tensors.

    There an operation must consist of torch's own, for others to look through.
    """
    return not (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or is_in_torch_dispatch_mode()
    ) and all(type(each) in (Tensor, nn.Parameter) and each.device.type in ("cpu", "cuda") for each in tensors)
