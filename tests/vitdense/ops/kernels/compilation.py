"""Compiles every kernel for GPUs of two generations, none of which need be there."""

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vitdense.ops import (
    deformable_gradient_triton,
    deformable_triton,
    upsampled_argmax_triton,
    upsampled_cross_entropy_triton,
)

INDICES = ("grids", "keys", "first_down", "first_across", "starts_down", "ends_down", "starts_across", "ends_across")
NUMBERS = ("own", "every")
SIZES = (
    *("pixels", "width", "classes", "rows", "columns", "most"),
    *("queries", "heads", "levels", "cells", "count", "corners", "points", "step_cell", "step_head"),
    *("step_picture", "step_class", "step_row", "out_picture", "out_class", "out_row"),
)
TYPES = dict.fromkeys(INDICES, "*i32") | dict.fromkeys(NUMBERS, "fp32") | dict.fromkeys(SIZES, "i32")


def compiles(kernel: Any, capability: int, types: dict[str, str], **constants: Any) -> None:
    """Raises what Triton does; tensors that neither `types` nor TYPES name hold float32."""
    known = TYPES | types | dict.fromkeys(constants, "constexpr")
    signature = {name: known.get(name, "*fp32") for name in kernel.arg_names}
    compiled = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", capability, 32))
    assert compiled.asm["cubin"]


if __name__ == "__main__":
    for capability, logits, masks, smoothed in ((80, "*bf16", "*i16", True), (90, "*fp32", "*i64", False)):
        types = {"logits": logits, "masks": masks, "found": "*u8"}
        compiles(upsampled_argmax_triton._find_classes, capability, types, tile=128, block=16, step_column=1)
        shared = {"smoothed": smoothed, "ignored": -1, "block": 16, "step_column": 1}
        compiles(upsampled_cross_entropy_triton._sum_losses, capability, types, tile=128, **shared)
        compiles(upsampled_cross_entropy_triton._gather_gradient, capability, types, tile=64, out_column=1, **shared)
        types = {"values": logits, "summed": logits, "width": "i32"}
        compiles(deformable_triton._sample, capability, types, tile=16, block=32, step_channel=1)
        types |= {"above": logits, "to_values": logits, "order": "*i64", "starts": "*i64"}
        compiles(
            deformable_gradient_triton._at_points, capability, types, keeps=smoothed, tile=16, block=32, step_channel=1
        )
        compiles(deformable_gradient_triton._at_values, capability, types, tile=16, block=32)
