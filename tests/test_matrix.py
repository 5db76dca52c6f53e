"""Every head on every family of backbones through every adapter: it runs at any size, or says which adapter would help.

Families, adapters and heads are those that are registered, so that new ones are tested without a line here.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from vitdense.build import AdaptedBackbone
from vitdense.contracts import ADAPTERS, BACKBONES, HEADS, Backbone, BackboneConfig, Level
from vitdense.errors import UserError
from vitdense.registry import Config

SIZE, CLASSES = (75, 98), 5
ADAPTER_NAMES = [None, *ADAPTERS.names()]


def families() -> list[str]:
    """One name for each config class and first word of its presets, such as `dinov2`: the smallest by name."""
    chosen: dict[tuple[type[BackboneConfig], str], str] = {}
    for name in BACKBONES.names():
        key = (BACKBONES.find(name)[0], name.partition("_")[0])
        if key not in chosen or "_nano" in name:
            chosen[key] = name
    return sorted(chosen.values())


def narrow(kind: type[Config]) -> dict[str, Any]:
    """Options that make heads and adapters small: 8 wherever channels are counted."""
    options: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if name != "in_channels" and name.endswith(("channels", "_dim")):
            if isinstance(field.default, int):
                options[name] = 8
            elif isinstance(field.default, tuple):
                options[name] = (8,) * len(field.default)
    return options


def shrunken(name: str) -> Backbone:
    """The same structure, narrow and shallow."""
    kind, preset = BACKBONES.find(name)
    stages = len(preset.get("depths", ()))
    small: Mapping[str, Any] = (
        {"embed_dim": 8, "depths": (1,) * stages, "num_heads": (1,) * stages}
        if stages
        else {"embed_dim": 32, "depth": 4, "num_heads": 2, "image_size": 4 * preset.get("patch_size", 8)}
        | ({"window": 3, "global_blocks": (1, 3)} if preset.get("window") else {})
    )
    return BACKBONES.create(name, {key: value for key, value in small.items() if key in kind.model_fields}).build()


def adapted(backbone: Backbone, adapter: str | None) -> Backbone:
    if adapter is None:
        return backbone
    options = narrow(ADAPTERS.find(adapter)[0])
    return AdaptedBackbone(backbone, ADAPTERS.create(adapter, options))


def headed(head: str, levels: tuple[Level, ...]) -> Any:
    return HEADS.create(head, {"num_classes": CLASSES, **narrow(HEADS.find(head)[0])}).build(levels)


def of_pictures(name: str) -> bool:
    with torch.device("meta"):
        return all(level.time_stride is None for level in shrunken(name).levels)


FAMILIES = [name for name in families() if of_pictures(name)]


def fits(head: str, family: str, adapter: str | None) -> bool:
    with torch.device("meta"):
        try:
            headed(head, adapted(shrunken(family), adapter).levels)
        except UserError:
            return False
    return True


@pytest.mark.parametrize("adapter", ADAPTER_NAMES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", HEADS.names())
def test_a_head_trains_or_names_an_adapter_that_helps(head: str, family: str, adapter: str | None) -> None:
    try:
        backbone = adapted(shrunken(family), adapter)
        module = headed(head, backbone.levels)
    except UserError as error:
        named = [name for name in ADAPTERS.names() if re.search(rf"\b{name}\b", str(error)) and name != adapter]
        if not any(fits(head, family, name) for name in named):
            pytest.fail(f"refused, and no adapter that would help is named: {error}")
        return
    images = torch.randn(2, 3, *SIZE)
    features = backbone(images)
    for level, each in zip(backbone.levels, features, strict=True):
        assert each.shape == (2, level.channels, *(math.ceil(n / level.stride) for n in SIZE))
    outputs = module(features, {"images": images})
    if module.dense == "depth":
        check_depth(outputs["depth"], backbone.levels)
    else:
        check_logits(outputs["logits"], backbone.levels)
    torch.autograd.backward([each.square().mean() for each in outputs.values()])
    unused = backbone.unused_in_maps()
    for name, parameter in [*backbone.named_parameters(), *module.named_parameters()]:
        assert (parameter.grad is None) == (name in unused), name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def check_depth(depth: torch.Tensor, levels: tuple[Level, ...]) -> None:
    """(B, 1, h, w) of whole pixels, of a level's cells or of quarters of them."""
    quarters = {level.stride / 4 for level in levels}
    sizes = [tuple(math.ceil(n / stride) for n in SIZE) for stride in {1, 2, *(level.stride for level in levels)}]
    sizes += [tuple(math.ceil(n / stride) for n in SIZE) for stride in quarters if stride == int(stride)]
    sizes += [tuple(math.ceil(n / (4 * stride)) * 4 for n in SIZE) for stride in quarters if stride != int(stride)]
    assert depth.shape[:2] == (2, 1)
    assert tuple(depth.shape[2:]) in sizes


def check_logits(logits: torch.Tensor, levels: tuple[Level, ...]) -> None:
    """(B, K, h, w) of whole pixels or of a level's cells, or (B, ..., K), with a class for nothing or without."""
    if logits.ndim == 4:
        sizes = [tuple(math.ceil(n / stride) for n in SIZE) for stride in {1, 2, *(level.stride for level in levels)}]
        assert logits.shape[:2] == (2, CLASSES)
        assert tuple(logits.shape[2:]) in sizes
    else:
        assert logits.shape[0] == 2
        assert logits.shape[-1] in (CLASSES, CLASSES + 1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", HEADS.names())
def test_every_head_finds_a_way_onto_every_family(head: str, family: str) -> None:
    assert any(fits(head, family, adapter) for adapter in ADAPTER_NAMES)


@pytest.mark.parametrize("adapter", ADAPTERS.names())
def test_every_adapter_finds_a_family(adapter: str) -> None:
    assert any(fits("linear", family, adapter) for family in FAMILIES)
