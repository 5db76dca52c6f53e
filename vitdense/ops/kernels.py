"""When an operation on a GPU runs as a Triton kernel (files `*_triton.py`) instead of torch's own operations.

No GPU has timed the kernels yet, so they run where they are asked for: in an environment with VITDENSE_KERNELS=1.
"""

import os
import shutil
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)
"""What kernels read; they compute in float32, so float64 takes the other way."""
CAPABILITY = (8, 0)
"""The oldest GPUs that Triton supports."""
SWITCH = "VITDENSE_KERNELS"


def runs_as_kernel(tensor: Tensor) -> bool:
    """True for a CUDA tensor of at most float32, on a GPU and a machine that Triton can compile for, if asked for."""
    return has_kernels(tensor.device, tensor.dtype)


def has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """The rule of `runs_as_kernel` for a place and a precision; imports nothing."""
    return (
        device.type == "cuda"
        and os.environ.get(SWITCH) == "1"
        and dtype in PRECISIONS
        and can_compile()
        and torch.cuda.get_device_capability(device) >= CAPABILITY
    )


@cache
def can_compile() -> bool:
    """Triton is installed, and a C compiler with it, which it needs to launch what it compiled."""
    compiler = "CC" in os.environ or any(shutil.which(name) for name in ("gcc", "clang"))
    return compiler and find_spec("triton") is not None
