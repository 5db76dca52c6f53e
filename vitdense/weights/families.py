"""Telling checkpoint families apart by their keys, and renaming keys to ours."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitdense.errors import WeightsError
from vitdense.weights.contents import Checkpoint

Replacement = str | Callable[[re.Match[str]], str]

# Wrappers that stand for nothing: DataParallel, torch.compile, and transformers' names of its inner models.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:(?:module|_orig_mod|vit|swin)\.)+")
_QKV = re.compile(r"^(.*\.attn)\.([qkv])\.(weight|bias)$")


@dataclass(frozen=True)
class Family:
    """One dialect of keys. `markers` are patterns that must all be met; what precedes the first is the root.

    `renames` are tried in turn on each key below the root, `left_out` names keys without a place in a backbone, and
    `options` says how the network that the weights come from was built.
    """

    name: str
    architecture: str
    markers: tuple[str, ...]
    renames: tuple[tuple[str, Replacement], ...]
    left_out: str
    options: Callable[[Checkpoint, Mapping[str, Tensor]], dict[str, Any]]

    def roots(self, state: Mapping[str, Tensor]) -> list[str]:
        """Prefixes below which this family's keys are found."""
        first = re.compile(rf"^(?P<root>(?:.*\.)?){self.markers[0]}$")
        found = sorted({match["root"] for key in state if (match := first.match(key))})
        return [root for root in found if all(_has(state, root, marker) for marker in self.markers[1:])]

    def convert(self, state: Mapping[str, Tensor], root: str) -> tuple[dict[str, Tensor], list[str]]:
        """Tensors under our names, and the keys that were left out."""
        converted: dict[str, Tensor] = {}
        left_out = []
        for key, tensor in state.items():
            inner = key.removeprefix(root)
            if not key.startswith(root) or re.match(self.left_out, inner):
                left_out.append(key)
                continue
            for pattern, replacement in self.renames:
                inner = re.sub(pattern, replacement, inner)
            converted[inner] = tensor
        return _join_qkv(converted), left_out


def without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with wrappers' names taken out of the keys."""
    return {_WRAPPERS.sub("", key): tensor for key, tensor in state.items()}


def detect(state: Mapping[str, Tensor], families: tuple[Family, ...], source: str) -> tuple[Family, str]:
    """The family of these keys and the root they are below; the first that fits wins."""
    for family in families:
        roots = family.roots(state)
        if len(roots) > 1:
            named = ", ".join(repr(root) for root in roots)
            raise WeightsError(f"{source} holds several backbones, below {named}: pass the tensors of one of them")
        if roots:
            return family, roots[0]
    known = ", ".join(f"{family.name} {family.architecture}" for family in families)
    raise WeightsError(
        f"{source} is of no family that is known here; known: {known}; its keys begin with {sorted(state)[:4]}"
    )


def shifted_downsample(match: re.Match[str]) -> str:
    """A merging at the end of stage n is one at the beginning of stage n + 1."""
    return f"layers.{int(match[1]) + 1}.downsample."


def name_final_norm(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """A hierarchical backbone's final norm becomes the last stage's, unless that has one of its own."""
    stages = [int(match[1]) for key in state if (match := re.match(r"layers\.(\d+)\.", key))]
    renamed: dict[str, Tensor] = {}
    left_out = []
    for key, tensor in state.items():
        name = key.replace("norm.", f"norms.{max(stages)}.", 1) if key.startswith("norm.") else key
        if name != key and name in state:
            left_out.append(key)
        else:
            renamed[name] = tensor
    return renamed, left_out


def _has(state: Mapping[str, Tensor], root: str, marker: str) -> bool:
    pattern = re.compile(rf"^{re.escape(root)}{marker}$")
    return any(pattern.match(key) for key in state)


def _join_qkv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """attn.q, attn.k and attn.v, kept apart, become attn.qkv."""
    joined: dict[str, Tensor] = {}
    for key, tensor in state.items():
        match = _QKV.match(key)
        if match is None:
            joined[key] = tensor
        elif match[2] == "q":
            parts = [state.get(f"{match[1]}.{part}.{match[3]}") for part in "qkv"]
            if all(part is not None for part in parts):
                joined[f"{match[1]}.qkv.{match[3]}"] = torch.cat([part for part in parts if part is not None])
    return joined
