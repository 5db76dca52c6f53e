"""Measuring what another library's network really gives: strides, channels, the sizes it takes, its layers in order."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.contracts import Level
from vitdense.errors import UserError

Features = Callable[[Tensor], list[Tensor]]
Size = tuple[int, int]

# Divisible by the strides and windows in use (7, 14, 16, 32).
EASY: Size = (224, 224)
# Sizes that show a network which loses the last rows or columns.
_ODD = ((65, 97), (94, 127))
_SECOND: tuple[Size, ...] = ((256, 256),)
_LONG = 896


@dataclass(frozen=True)
class Sizes:
    """What pictures must be padded to: a multiple, or the only size that a network takes."""

    multiple: int = 1
    only: Size | None = None

    def pad(self, images: Tensor, name: str) -> Tensor:
        """images: (B, C, H, W) -> the same with zeros at the right and bottom."""
        height, width = images.shape[-2:]
        if self.only is None:
            bottom, right = -height % self.multiple, -width % self.multiple
        else:
            bottom, right = self.only[0] - height, self.only[1] - width
            if bottom < 0 or right < 0:
                raise UserError(
                    f"{name} was built for pictures of up to {_by(self.only)}, given {_by((height, width))}; give "
                    "image_size: [H, W] of the largest picture"
                )
        return F.pad(images, (0, right, 0, bottom)) if bottom or right else images


@dataclass(frozen=True)
class Measured:
    """Levels as they come out, the sizes that a network takes, and one that is known to work."""

    levels: tuple[Level, ...]
    sizes: Sizes
    size: Size


def measure(name: str, features: Features, in_channels: int, tried: tuple[Size, ...], *, only: Size | None) -> Measured:
    """Tries a network at several sizes; `only` is the one it may be held to where no padding makes it take any."""
    faults: list[str] = []
    held: Measured | None = None
    # A stride of 64 shows as one of 56 at 224; what is true at one size is asked again at others.
    for size in dict.fromkeys((*tried, *(() if only else _SECOND))):
        maps = _attempt(features, in_channels, size, faults)
        levels = None if maps is None else _levels(maps, size, faults)
        if levels is None:
            continue
        held = held or Measured(levels, Sizes(only=size), size)
        for multiple in _multiples(levels, tried):
            if all(_fits(features, in_channels, probe, levels, faults) for probe in _probes(multiple)):
                return Measured(levels, Sizes(multiple), size)
    if held is None:
        raise UserError(f"{name} gives no maps: {faults[-1]}")
    strides = [level.stride for level in held.levels]
    if only is None:
        raise UserError(
            f"{name} takes pictures of {_by(held.size)} only ({faults[-1]}), and maps are promised for any size; give "
            "image_size: [H, W] of your largest picture, which all are then padded to, or take a network with relative "
            "or resizable positions, such as timm/vit_*, timm/swin_*, timm/convnext_*"
        )
    if any(stride % min(strides) for stride in strides):
        raise UserError(f"{name} gives strides {strides} at {_by(only)}: give an image_size that its stages divide")
    return held


def saved_for_backward(features: Features, images: Tensor) -> int:
    """The number of values that autograd keeps for the backward pass."""
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        features(images.requires_grad_(True))
    return kept


@torch.no_grad()
def layers_in_order(model: nn.Module, run: Callable[[], object], *, nested: bool) -> dict[str, int]:
    """Each parameter's layer, counted in the order in which one run enters them: 0 for what comes before all blocks.

    A block is an entry of a list of modules; with `nested`, an entry of a list within one, as in a pyramid's stages.
    """
    entered: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: entered.append(name))
        for name, module in model.named_modules()
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    owners = {name: _owner(name, frozenset(entered)) for name, _ in model.named_parameters()}
    numbers: dict[str, int] = {}
    layers: dict[str, int] = {}
    count, previous = -1, None
    for module in dict.fromkeys(entered):
        if module not in owners.values():
            continue
        block = _block(model, module, 2 if nested else 1)
        if block != previous and (not block or block not in numbers):
            count += 1
            numbers[block] = count
        layers[module], previous = numbers[block], block
    return {name: layers.get(owner, 0) for name, owner in owners.items()}


def _block(model: nn.Module, path: str, most: int) -> str:
    """The path of the block around a module, at most so many lists deep; "" where there is none."""
    parts, found = path.split("."), [""]
    for i in range(1, len(parts) + 1):
        if len(found) > most:
            break
        container = model.get_submodule(".".join(parts[: i - 1]))
        alike = isinstance(container, nn.Sequential) and len({type(entry) for entry in container}) == 1
        if isinstance(container, nn.ModuleList) or alike:
            found.append(".".join(parts[:i]))
    return found[-1]


def _owner(parameter: str, entered: frozenset[str]) -> str:
    """The innermost module around a parameter that was entered; "" is the whole network, which may be run in parts."""
    module = parameter.rpartition(".")[0]
    while module and module not in entered:
        module = module.rpartition(".")[0]
    return module


class Memory:
    """What a network must not remember: plain values that its runs change, such as a window that was once cut short.

    transformers' Swin keeps the window and the shift of the smallest picture it has seen, so that what it gives would
    depend on what it was given before.
    """

    def __init__(self, model: nn.Module) -> None:
        self.made_with = _plain_values(model)
        self.changing: set[tuple[str, str]] = set()

    def watch(self, model: nn.Module) -> None:
        """Notes what has changed since the network was made, and undoes it."""
        now = _plain_values(model)
        self.changing |= {key for key, value in self.made_with.items() if now.get(key, value) != value}
        self.undo(model)

    def undo(self, model: nn.Module) -> None:
        """Puts back what is known to change."""
        for module, name in self.changing:
            setattr(model.get_submodule(module), name, self.made_with[module, name])


def _plain_values(model: nn.Module) -> dict[tuple[str, str], object]:
    return {
        (path, name): value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, int | float | tuple) and name != "training"
    }


def tables_and_tokens(model: nn.Module) -> set[str]:
    """Parameters of two or more dimensions that are no weights of a product: position tables, class tokens, ..."""
    embeddings = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    return {
        name
        for name, parameter in model.named_parameters()
        if name in embeddings or (parameter.ndim > 1 and not re.search(r"(?:weight|bias|proj|kernel)$", name))
    }


def first_line(error: Exception) -> str:
    """What an error of another library says, on one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _by(size: Iterable[int]) -> str:
    return " x ".join(map(str, size))


def _multiples(levels: tuple[Level, ...], tried: Iterable[Size]) -> list[int]:
    """Candidates for what pictures must be padded to: strides, several of the coarsest, whole windows."""
    strides = [level.stride for level in levels]
    windows = {height for height, width in tried if height == width}
    return sorted({1, min(strides), max(strides), 2 * max(strides), 4 * max(strides), *windows})


def _probes(multiple: int) -> tuple[Size, ...]:
    """A small size and a long one, which shows a stride that is a little wrong."""
    if multiple == 1:
        return (*_ODD, (_ODD[0][0], _LONG + 5))
    rows = max(1, -(-64 // multiple))
    return (rows * multiple, (rows + 1) * multiple), (rows * multiple, -(-_LONG // multiple) * multiple)


@torch.no_grad()
def _attempt(features: Features, in_channels: int, size: Size, faults: list[str]) -> list[Tensor] | None:
    """The maps, or None where the network refuses; libraries refuse by all of these errors."""
    try:
        return features(torch.zeros(1, in_channels, *size))
    except (AssertionError, RuntimeError, ValueError, IndexError, TypeError) as error:
        faults.append(first_line(error))
        return None


def _levels(maps: list[Tensor], size: Size, faults: list[str]) -> tuple[Level, ...] | None:
    levels = []
    for each in maps:
        if each.ndim != 4 or size[0] % each.shape[2] or size[0] // each.shape[2] * each.shape[3] != size[1]:
            faults.append(f"{tuple(each.shape)} of a picture of {_by(size)} is not a map of one whole stride")
            return None
        levels.append(Level(each.shape[1], size[0] // each.shape[2]))
    return tuple(levels)


def _fits(features: Features, in_channels: int, size: Size, levels: tuple[Level, ...], faults: list[str]) -> bool:
    maps = _attempt(features, in_channels, size, faults)
    if maps is None:
        return False
    given = [tuple(each.shape[1:]) for each in maps]
    promised = [(level.channels, -(-size[0] // level.stride), -(-size[1] // level.stride)) for level in levels]
    if given != promised:
        faults.append(f"a picture of {_by(size)} gives {given}")
    return given == promised
