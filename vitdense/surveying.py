"""Which backbones give true maps at any size: one of each family is made, run and measured, and written as a table."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from importlib.metadata import version
from typing import Any

import torch

from vitdense.backbones.alignment import measure_alignment
from vitdense.build import create_backbone, list_backbones
from vitdense.contracts import BACKBONES, Backbone
from vitdense.errors import UserError

SIZES = ((224, 224), (250, 333), (64, 96))

_PLAIN: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_STAGES: dict[str, Any] = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]}

# Of transformers' model types, with small configs; others of the same kind work alike.
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "vit": _PLAIN,
    "deit": _PLAIN,
    "vit_mae": _PLAIN,
    "beit": _PLAIN,
    "data2vec-vision": _PLAIN,
    "dinov2": _PLAIN,
    "dinov2_with_registers": _PLAIN,
    "dinov3_vit": _PLAIN,
    "clip_vision_model": _PLAIN,
    "siglip_vision_model": _PLAIN,
    "siglip2_vision_model": _PLAIN,
    "vitdet": _PLAIN,
    "swin": _STAGES,
    "swinv2": _STAGES,
    "convnext": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "convnextv2": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "focalnet": {"embed_dim": 16, "depths": [1, 1, 1, 1]},
    "pvt_v2": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4]},
    "segformer": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "hiera": {},
    "dinov3_convnext": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "bert": {},
}
TIMM = (
    *(
        "resnet18",
        "convnext_atto",
        "regnetx_002",
        "efficientnet_b0",
        "mobilenetv3_small_050",
        "hgnetv2_b0",
        "fastvit_t8",
    ),
    *("vit_tiny_patch16_224", "eva02_tiny_patch14_224", "vit_small_patch14_dinov2", "xcit_nano_12_p16_224"),
    *("swin_tiny_patch4_window7_224", "pvt_v2_b0", "davit_tiny", "maxvit_rmlp_nano_rw_256", "coatnet_nano_rw_224"),
    *("hiera_tiny_224", "levit_128s", "crossvit_tiny_240"),
)
# Structures that share the beginning of their names with others.
OWN_TOO = ("deit_tiny_patch16", "vit_nano_r_s16", "vit_small_r26_s32")
OPEN_CLIP = ("ViT-B-32", "RN50", "convnext_base")


@dataclass(frozen=True)
class Finding:
    """What one backbone does; `strides` is empty and `problem` says why where it can't be made or run."""

    name: str
    strides: tuple[int, ...] = ()
    channels: tuple[int, ...] = ()
    any_size: bool = False
    backward: bool = False
    aligned: str = ""
    recompute: bool = False
    one_channel: bool = False
    problem: str = ""


def named(pattern: str = "*") -> Iterator[tuple[str, dict[str, Any]]]:
    """The names that are surveyed and the options they are made with."""
    everything: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in (*_of_each_family(), *OWN_TOO)]
    everything += [(f"timm/{name}", {}) for name in TIMM]
    everything += [(f"hf/{name}", {"config": config} if config else {}) for name, config in TRANSFORMERS.items()]
    everything += [(f"open_clip/{name}", {}) for name in OPEN_CLIP]
    return iter([(name, options) for name, options in everything if fnmatch(name, pattern)])


def _of_each_family() -> list[str]:
    """Own presets of one structure differ in width and depth only: the smallest stands for them."""
    smallest: dict[str, tuple[int, str]] = {}
    for name in list_backbones():
        config = BACKBONES.create(name).model_dump()
        if "frames" in config:  # takes clips
            continue
        family = name.partition("_")[0] + name.partition("patch14")[2]
        size = int(config["embed_dim"]) * int(config.get("depth") or sum(config.get("depths", ())))
        smallest[family] = min(smallest.get(family, (size, name)), (size, name))
    return sorted(name for _, name in smallest.values())


def examine(named_options: tuple[str, dict[str, Any]]) -> Finding:
    """One backbone by its name and options, made and measured."""
    name, options = named_options
    torch.manual_seed(0)
    try:
        backbone = create_backbone(name, **options).eval()
        any_size = all(_true(backbone, size) for size in SIZES)
        alignment = {each.verdict for each in measure_alignment(backbone, (250, 333))}
    except UserError as error:
        return Finding(name, problem=str(error).splitlines()[0])
    return Finding(
        name,
        strides=tuple(level.stride for level in backbone.levels),
        channels=tuple(level.channels for level in backbone.levels),
        any_size=any_size,
        backward=_backward(backbone),
        aligned="no" if "no" in alignment else "unclear" if "unclear" in alignment else "yes",
        recompute=_takes(name, {**options, "grad_checkpointing": True}),
        one_channel=_takes(name, {**options, "in_channels": 1}),
    )


@torch.no_grad()
def _true(backbone: Backbone, size: tuple[int, int]) -> bool:
    maps = backbone(torch.randn(1, 3, *size))
    promised = [(1, each.channels, *(-(-side // each.stride) for side in size)) for each in backbone.levels]
    return [tuple(each.shape) for each in maps] == promised


def _backward(backbone: Backbone) -> bool:
    maps = backbone(torch.randn(1, 3, 64, 96).requires_grad_())
    wanted = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    loss = torch.stack([each.square().mean() for each in maps]).sum()
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return any(each is not None for each in found) and all(
        each is None or bool(each.isfinite().all()) for each in found
    )


def _takes(name: str, options: dict[str, Any]) -> bool:
    try:
        create_backbone(name, **options)
    except UserError:
        return False
    return True


def as_page(findings: list[Finding]) -> str:
    """The table of docs/backbones.md."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "transformers", "open_clip_torch"))
    works = sum(not each.problem for each in findings)
    lines = [
        "# Backbones",
        "",
        f"Written by `python tools/survey.py` with {libraries}: {works} of {len(findings)} names work.",
        "",
        "Each is made with random weights (transformers' with small configs) and measured: the strides and channels of",
        "its maps; whether they are ceil(size / stride) at 224x224, 250x333 and 64x96; whether gradients are finite;",
        "whether cells stand where their pixels are (*unclear*: random weights answer too widely to tell); whether it",
        "can recompute (`grad_checkpointing`) and take one input channel. Of own presets one of each family is shown.",
        "",
        "| name | strides | channels | any size | gradients | aligned | recompute | 1 channel |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in findings:
        if each.problem:
            lines.append(f"| `{each.name}` | {each.problem.replace('|', '/')} | | | | | | |")
            continue
        strides, channels = (", ".join(map(str, values)) for values in (each.strides, each.channels))
        answers = [_word(value) for value in (each.any_size, each.backward)]
        more = [_word(value) for value in (each.recompute, each.one_channel)]
        lines.append(f"| `{each.name}` | {' | '.join([strides, channels, *answers, each.aligned, *more])} |")
    return "\n".join(lines) + "\n"


def as_records(findings: list[Finding]) -> dict[str, Any]:
    """For JSON, by name."""
    return {each.name: asdict(each) for each in findings}


def _word(value: bool) -> str:
    return "yes" if value else "no"
