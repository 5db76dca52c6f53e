"""From names and recipes to modules: backbones with weights and adapter, and whole models."""

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vitdense.contracts import ADAPTERS, BACKBONES, Adapter, AdapterConfig, Backbone, BackboneConfig, HeadConfig, Tokens
from vitdense.errors import UserError
from vitdense.model import Model
from vitdense.recipe import Recipe

if TYPE_CHECKING:
    from vitdense.weights import Weights


class AdaptedBackbone(Backbone):
    """A backbone whose maps pass through an adapter; `levels` are the adapter's."""

    def __init__(self, backbone: Backbone, config: AdapterConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.adapter = config.build(backbone.levels)
        self.adapter_config = config
        self.levels = self.adapter.levels
        self.embed_dim = backbone.embed_dim
        self.num_layers = backbone.num_layers
        self.mean, self.std = backbone.mean, backbone.std
        self.config, self.load_report = backbone.config, backbone.load_report

    def forward(self, images: Tensor) -> list[Tensor]:
        """images: (B, C, H, W), normalised -> one map for each of the adapter's levels."""
        maps: list[Tensor] = self.adapter.adapt(self.backbone, images)
        return maps

    def tokens(self, images: Tensor) -> Tokens:
        """The backbone's own tokens."""
        return self.backbone.tokens(images)

    def value_tokens(self, images: Tensor) -> Tokens:
        """The backbone's own."""
        return self.backbone.value_tokens(images)

    def attention_blocks(self) -> list[nn.Module]:
        """The backbone's own."""
        return self.backbone.attention_blocks()

    def embed(self, images: Tensor) -> Tensor:
        """The backbone's own vector."""
        return self.backbone.embed(images)

    def maps_and_vector(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """One pass through the backbone where the adapter takes its maps as they come."""
        if type(self.adapter).adapt is not Adapter.adapt:
            return self(images), self.embed(images)
        maps, vector = self.backbone.maps_and_vector(images)
        return self.adapter(maps, images), vector

    def layer_of(self, parameter: str) -> int:
        """The adapter is new, so it learns at the rate above the last layer."""
        part, _, rest = parameter.partition(".")
        return self.backbone.layer_of(rest) if part == "backbone" else self.num_layers + 1

    def no_decay(self) -> set[str]:
        """The backbone's, under their names here."""
        return {f"backbone.{name}" for name in self.backbone.no_decay()}

    def unused_in_maps(self) -> set[str]:
        """The backbone's, under their names here."""
        return {f"backbone.{name}" for name in self.backbone.unused_in_maps()}

    def unused_in_embed(self) -> set[str]:
        """The backbone's, under their names here, and the whole adapter."""
        adapter = {f"adapter.{name}" for name, _ in self.adapter.named_parameters()}
        return adapter | {f"backbone.{name}" for name in self.backbone.unused_in_embed()}


def list_backbones(pattern: str = "*") -> list[str]:
    """Names of our own backbones that match a shell pattern; `timm/*`, `hf/*` and `open_clip/*` list the libraries'."""
    library, slash, _ = pattern.partition("/")
    if slash and library in BACKBONES.families():
        return fnmatch.filter(BACKBONES.find(pattern)[0].listed(), pattern)
    return BACKBONES.names(pattern)


def create_backbone(
    name: str,
    *,
    weights: str | Path | Mapping[str, Tensor] | None = None,
    adapter: str | Mapping[str, Any] | None = None,
    **options: Any,
) -> Backbone:
    """A backbone by registry name, `adapter` by name or as {"name": ..., options}; UserError names what is wrong.

    weights: "default", "timm/<model>.<tag>", "hf/<repo>", a file or folder, a checkpoint of a run of ours
    ("runs/x/best"), whatever its head, or a mapping of tensors.
    """
    config = BACKBONES.create_or_tell(name, options)
    chosen = {"name": adapter} if isinstance(adapter, str) else dict(adapter or {})
    adapter_config = ADAPTERS.create_or_tell(chosen.pop("name"), chosen) if chosen else None
    backbone = _build_backbone(config, config.weights if weights is None else weights)
    return backbone if adapter_config is None else AdaptedBackbone(backbone, adapter_config)


def _build_backbone(config: BackboneConfig, weights: str | Path | Mapping[str, Tensor] | None) -> Backbone:
    """Build, and load; what a checkpoint says about itself (eps, mean, ...) stands below what the user set."""
    inner = config.inner()
    if inner is not None:
        within = _build_backbone(inner, weights)
        backbone = config.around(within)
        backbone.load_report = within.load_report
        return backbone
    if weights is None:
        backbone = config.build()
        backbone.config = config
        return backbone
    from vitdense.runs import find_run, read_run
    from vitdense.weights import read_weights

    run = find_run(weights)
    return fill_backbone(config, read_weights(weights, config) if run is None else read_run(run, config))


def fill_backbone(config: BackboneConfig, found: "Weights") -> Backbone:
    """A backbone of these weights; what they say of their network stands below what the user set."""
    from vitdense.weights import configured, load_weights

    config = configured(config, found)
    backbone = config.build()
    backbone.config = config
    backbone.load_report = load_weights(backbone, found)
    return backbone


def build_model(
    recipe: Recipe,
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]] = (),
    category_ids: Sequence[int] = (),
    *,
    load_weights: bool = True,
) -> Model:
    """The recipe's model for these classes, none for depth; a class count in the recipe must agree with them."""
    config = recipe.backbone
    backbone = _build_backbone(config, config.weights if load_weights else None)
    if recipe.adapter is not None:
        backbone = AdaptedBackbone(backbone, recipe.adapter)
    head = _with_classes(recipe.head, classes).build_for(backbone)
    return Model(
        backbone, head, classes=classes, palette=palette, category_ids=category_ids, inference=recipe.inference
    )


def _with_classes(head: HeadConfig, classes: Sequence[str]) -> HeadConfig:
    if head.num_classes not in (None, len(classes)):
        names = f" ({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''})" if classes else ""
        raise UserError(
            f"head.num_classes is {head.num_classes}, but the data set has {len(classes)} classes{names};"
            " leave it out or make them agree"
        )
    if not classes:
        return head
    return head.for_classes(len(classes))


def copy_state(state: Mapping[str, Tensor], module: torch.nn.Module) -> str:
    """Tensors into a module, if they are all there and fit; else the faults."""
    own = module.state_dict()
    faults = [f"missing {key}" for key in own.keys() - state.keys()]
    faults += [f"unexpected {key}" for key in state.keys() - own.keys()]
    faults += [
        f"{key} is {tuple(state[key].shape)}, the model's is {tuple(own[key].shape)}"
        for key in own.keys() & state.keys()
        if own[key].shape != state[key].shape
    ]
    if not faults:
        module.load_state_dict(state)
    return "; ".join(sorted(faults)[:6]) + ("; ..." if len(faults) > 6 else "")
