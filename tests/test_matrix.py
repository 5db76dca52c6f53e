"""Every head on every family of backbones through every adapter: it runs at any size, or says which adapter would help.

Families, adapters and heads are those that are registered, so that new ones are tested without a line here. The table
docs/matrix.md is what the tests found: `pytest tests/test_matrix.py --write-docs` writes it anew.
"""

import math
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vitdense.build import AdaptedBackbone
from vitdense.contracts import (
    ADAPTERS,
    BACKBONES,
    HEADS,
    Backbone,
    BackboneConfig,
    Batch,
    ContrastiveHead,
    Head,
    HeadConfig,
    Level,
    Outputs,
    Target,
)
from vitdense.errors import UserError
from vitdense.model import Model
from vitdense.registry import Config

SIZE, CLASSES = (75, 98), 5
ADAPTER_NAMES = [None, *ADAPTERS.names()]
SEVERAL = "tasks"  # others side by side
OF_CLIPS = ("change", "linear_3d", "per_frame", "upernet_3d")  # on maps with a time axis: tests/heads
OF_BLOCKS = "eomt"  # of plain ViTs alone, without an adapter
ELSEWHERE = {SEVERAL, OF_BLOCKS, *OF_CLIPS}
HEAD_NAMES = [*(name for name in HEADS.names() if name not in ELSEWHERE), "smp/linknet", "smp/fpn"]
DEPTH = "depth"
QUERIES = {"num_queries": 6, "encoder_layers": 1, "decoder_layers": 2}
TEXT = {"width": 8, "depth": 1, "num_heads": 2, "context": 5, "vocab": 9}
OPTIONS: dict[str, dict[str, Any]] = {
    "smp/fpn": {"options": {"decoder_pyramid_channels": 8, "decoder_segmentation_channels": 32}},
    "deformable_detr": {"channels": 32, **QUERIES},
    "dino": {"channels": 32, **QUERIES},
    "rtdetr": QUERIES,
    "mask_transformer": {"channels": 32, "pixel_channels": 32, "mask_channels": 8, **QUERIES},
    "dfine": QUERIES,
    "clip": {"text": {"name": "clip_text_nano", **TEXT}, "dim": 8},
    "siglip": {"text": {"name": "siglip_text_base", **TEXT}, "dim": 8, "image_projection": "linear"},
    "coca": {
        "text": {"name": "coca_text_nano", **TEXT},
        "dim": 8,
        "num_queries": 3,
        "decoder_depth": 1,
        "decoder_heads": 2,
    },
}
TOKENS = torch.tensor([[1, 5, 8, 0, 0], [1, 2, 3, 7, 8]])
THINGS = Target(boxes=torch.tensor([[5.0, 9.0, 40.0, 60.0], [50.0, 2.0, 90.0, 30.0]]), labels=torch.tensor([0, 3]))


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


def config_of(head: str) -> HeadConfig:
    kind = HEADS.find(head)[0]
    classes = {} if DEPTH in head else {"num_classes": CLASSES}
    return HEADS.create(head, {**classes, **narrow(kind), **OPTIONS.get(head, {})})


def of_pictures(name: str) -> bool:
    with torch.device("meta"):
        return all(level.time_stride is None for level in shrunken(name).levels)


FAMILIES = [name for name in families() if of_pictures(name)]


@cache
def structure_of(family: str, adapter: str | None) -> Backbone | str:
    """The backbone without weights, or why the adapter refuses the family."""
    with torch.device("meta"):
        try:
            return adapted(shrunken(family), adapter)
        except UserError as error:
            return str(error)


@cache
def refusal(head: str, family: str, adapter: str | None) -> str | None:
    """Why a head doesn't take what a family gives through an adapter, or None where it does."""
    backbone = structure_of(family, adapter)
    if isinstance(backbone, str):
        return backbone
    with torch.device("meta"):
        try:
            Model(backbone, config_of(head).build_for(backbone))
        except UserError as error:
            return str(error)
    return None


@cache
def reads_no_maps(head: str) -> bool:
    """Whether a head refuses every adapter, since nothing of them reaches it."""
    return "leave the adapter out" in (refusal(head, "vit_nano_patch8", "simple_pyramid") or "")


@cache
def maps_of(family: str, adapter: str | None) -> list[Tensor]:
    """The maps of two pictures, whose making was checked: true sizes, and a gradient for every parameter."""
    torch.manual_seed(0)
    backbone = adapted(shrunken(family), adapter)
    maps = backbone(torch.randn(2, 3, *SIZE))
    for level, each in zip(backbone.levels, maps, strict=True):
        assert each.shape == (2, level.channels, *(math.ceil(n / level.stride) for n in SIZE))
    torch.autograd.backward([each.square().mean() for each in maps])
    unused = backbone.unused_in_maps()
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == (name in unused), name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    return [each.detach() for each in maps]


@cache
def whole_of(family: str) -> dict[str, Tensor]:
    """The vector and the tokens of two pictures, with a gradient for every parameter that maps alone don't need."""
    torch.manual_seed(0)
    backbone = shrunken(family)
    images = torch.randn(2, 3, *SIZE)
    vector, (patches, prefix, _) = backbone.embed(images), backbone.tokens(images)
    assert vector.shape == (2, backbone.embed_dim)
    torch.autograd.backward([vector.square().mean(), patches.square().mean()])
    unused = backbone.unused_in_embed()
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == (name in unused), name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    return {"vector": vector.detach(), "tokens": torch.cat([prefix, patches], dim=1).detach()}


@pytest.mark.parametrize("adapter", ADAPTER_NAMES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", HEAD_NAMES)
def test_a_head_trains_or_names_an_adapter_that_helps(head: str, family: str, adapter: str | None) -> None:
    error = refusal(head, family, adapter)
    if error is not None:
        if reads_no_maps(head):
            assert adapter is not None, error
            return
        named = [name for name in ADAPTERS.names() if re.search(rf"\b{name}\b", error) and name != adapter]
        if all(refusal(head, family, name) is not None for name in named):
            pytest.fail(f"refused, and no adapter that would help is named: {error}")
        return
    backbone = structure_of(family, adapter)
    assert not isinstance(backbone, str)
    config = config_of(head)
    module = config.build_for(backbone)
    given = maps_of(family, adapter) if module.reads == "maps" else [whole_of(family)[module.reads]]
    features = [each.clone().requires_grad_() for each in given]
    batch: Batch = {"images": torch.empty(2, 3, *SIZE), "targets": [THINGS, THINGS], "tokens": TOKENS}
    outputs = module(features, batch)
    check_output(module, outputs, backbone.levels)
    losses = (
        module.losses(outputs, batch)
        if module.detects or module.joint
        else {"": sum(o.square().mean() for o in outputs.values())}
    )
    torch.autograd.backward(list(losses.values()))
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(each.grad is not None for each in features) or not config.reads_all()


def check_output(head: Head, outputs: Outputs, levels: tuple[Level, ...]) -> None:
    """(B, K, h, w) of pixels, a level's cells or quarters; or (B, ..., K), with a class for nothing or without; or
    embeddings of unit length."""
    if isinstance(head, ContrastiveHead):
        for name in ("image_embeddings", "text_embeddings"):
            assert outputs[name].shape == (2, 8)
            torch.testing.assert_close(outputs[name].norm(dim=-1), torch.ones(2))
        return
    given = outputs[head.dense or "logits"]
    if given.ndim == 4:
        sizes = [tuple(math.ceil(n / stride) for n in SIZE) for stride in {1, 2, *(level.stride for level in levels)}]
        # Probes of depth draw cells in four; a patch of 14 can't be cut to the picture then.
        sizes += [tuple(math.ceil(n / level.stride) * 4 for n in SIZE) for level in levels]
        sizes += [tuple(math.ceil(n / level.stride * 4) for n in SIZE) for level in levels]
        assert given.shape[:2] == (2, 1 if head.dense == DEPTH else CLASSES)
        assert tuple(given.shape[2:]) in sizes
    else:
        assert given.shape[0] == 2
        assert given.shape[-1] in (CLASSES, CLASSES + 1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", HEAD_NAMES)
def test_every_head_finds_a_way_onto_every_family(head: str, family: str) -> None:
    assert any(refusal(head, family, adapter) is None for adapter in ADAPTER_NAMES)


@pytest.mark.parametrize("adapter", ADAPTERS.names())
def test_every_adapter_finds_a_family(adapter: str) -> None:
    assert any(refusal("linear", family, adapter) is None for family in FAMILIES)


def table() -> str:
    """For each family and head the adapters that let them work together; families with the same in one row."""
    lines = [
        "# Which heads work on which backbones",
        "",
        "Written by `pytest tests/test_matrix.py --write-docs`, which runs every pair forward and backward at",
        f"{SIZE[0]}x{SIZE[1]}. `-` is no adapter, the others are values of `adapter: {{name: ...}}`. One preset stands",
        "for all of its family, and two decoders for smp's others.",
        "",
        "| families | " + " | ".join(f"`{head}`" for head in HEAD_NAMES) + " |",
        "|---" * (len(HEAD_NAMES) + 1) + "|",
    ]
    rows: dict[str, list[str]] = {}
    for family in FAMILIES:
        ways = (
            ", ".join(adapter or "-" for adapter in ADAPTER_NAMES if refusal(head, family, adapter) is None)
            for head in HEAD_NAMES
        )
        rows.setdefault(" | ".join(ways), []).append(f"`{family}`")
    lines += [f"| {', '.join(names)} | {ways} |" for ways, names in rows.items()]
    return "\n".join(lines) + "\n"


def test_the_table_in_the_docs_is_what_was_found(write_docs: bool) -> None:
    page = Path(__file__).parents[1] / "docs" / "matrix.md"
    if write_docs:
        page.write_text(table(), encoding="utf-8")
    assert page.read_text(encoding="utf-8") == table()
