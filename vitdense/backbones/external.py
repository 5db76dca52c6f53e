"""Backbones that timm builds, under names `timm/<architecture>`, with levels that are measured, not believed."""

import difflib
from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.backbones.options import evenly_spaced, pixel_statistics, resolve_out_indices
from vitdense.backbones.probing import Features, Measured, measure, saved_for_backward
from vitdense.contracts import BACKBONES, Backbone, BackboneConfig, Tokens
from vitdense.errors import UserError

# How timm's families spell "any size"; the first that an architecture takes.
_ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


class TimmNetwork(Protocol):
    """What is used of a timm model."""

    pretrained_cfg: Mapping[str, Any]
    feature_info: Any

    def forward_intermediates(self, x: Tensor, **options: Any) -> list[Tensor]:
        """Maps (B, C, H, W)."""

    def forward_features(self, x: Tensor) -> Tensor:
        """The last layer's features, as tokens or a map."""

    def forward_head(self, x: Tensor, pre_logits: bool) -> Tensor:
        """Pooled features."""

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Recompute blocks in the backward pass."""


@BACKBONES.register_family("timm")
class TimmConfig(BackboneConfig):
    """`architecture` is timm's name, with or without a tag; `out_indices` are timm's.

    `norm_maps` puts the network's final norm on the maps; left out, it does so where all maps have one stride.
    """

    architecture: str
    norm_maps: bool | None = None

    def build(self) -> "TimmBackbone":
        """timm's network with fresh weights."""
        return TimmBackbone(self)


class TimmBackbone(Backbone):
    """Pads at the right and bottom to what the network needs, and crops its maps to ceil(size / stride)."""

    def __init__(self, config: TimmConfig) -> None:
        super().__init__()
        if config.frozen_stages:
            raise UserError(f"timm/{config.architecture} has no stages to freeze: frozen_stages must be 0")
        self.model = _create(config)
        network = self._network()
        name, native = f"timm/{config.architecture}", tuple(network.pretrained_cfg["input_size"][1:])
        was_training = self.model.training
        self.model.eval()
        every = measure(name, self._probe(None, norm=False), config.in_channels, native)
        plain = len({level.stride for level in every.levels}) == 1
        count = len(every.levels)
        default = evenly_spaced(count) if plain else tuple(range(max(count - 4, 0), count))
        self.out_indices = resolve_out_indices(config.out_indices, count, default)
        self.norm_maps = plain if config.norm_maps is None else config.norm_maps
        chosen = measure(name, self._probe(self.out_indices, norm=self.norm_maps), config.in_channels, native)
        self.levels, self.multiple = chosen.levels, chosen.multiple
        self._measure_tokens(chosen, config.in_channels)
        published = network.pretrained_cfg
        self.mean, self.std = pixel_statistics(config, tuple(published["mean"]), tuple(published["std"]))
        if config.grad_checkpointing:
            self._checkpoint(name, chosen, config.in_channels)
        self._layers = _layers(self.model)
        self.num_layers = max(self._layers.values(), default=0)
        self.model.train(was_training)

    def _network(self) -> TimmNetwork:
        # timm has no type that says what its models can do, so that this border is a cast.
        return cast(TimmNetwork, self.model)

    def _probe(self, indices: tuple[int, ...] | None, *, norm: bool) -> Features:
        def maps(images: Tensor) -> list[Tensor]:
            return self._maps(images, indices, norm)

        return maps

    def _maps(self, images: Tensor, indices: tuple[int, ...] | None, norm: bool) -> list[Tensor]:
        return self._network().forward_intermediates(
            images,
            indices=None if indices is None else list(indices),
            norm=norm,
            stop_early=True,
            output_fmt="NCHW",
            intermediates_only=True,
        )

    @torch.no_grad()
    def _measure_tokens(self, chosen: Measured, in_channels: int) -> None:
        """The stride and layout of the last features, and the width of the embedding."""
        images = torch.zeros(1, in_channels, *chosen.size)
        features = self._network().forward_features(images)
        self.embed_dim = self._network().forward_head(features, pre_logits=True).shape[-1]
        self.num_prefix = int(getattr(self.model, "num_prefix_tokens", 0)) if features.ndim == 3 else 0
        self.channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        if features.ndim == 3:
            cells = features.shape[1] - self.num_prefix
        else:
            cells = features.shape[1] * features.shape[2] if self.channels_last else features[0, 0].numel()
        self.token_stride = round((chosen.size[0] * chosen.size[1] / cells) ** 0.5)
        self.tokens_as_map = features.ndim == 4

    def _checkpoint(self, name: str, chosen: Measured, in_channels: int) -> None:
        """Turns recomputing on, and sees that less is kept for the backward pass: timm ignores it in some networks."""
        images = torch.zeros(1, in_channels, *chosen.size)
        before = saved_for_backward(self._probe(self.out_indices, norm=self.norm_maps), images)
        try:
            self._network().set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:
            raise UserError(f"{name} can't recompute: timm has no gradient checkpointing for it") from error
        if saved_for_backward(self._probe(self.out_indices, norm=self.norm_maps), images) >= before:
            raise UserError(f"{name} ignores gradient checkpointing for its maps: leave grad_checkpointing out")

    def forward(self, images: Tensor) -> list[Tensor]:
        """images: (B, C, H, W), normalised -> [(B, C_i, ceil(H / s_i), ceil(W / s_i))] for each level."""
        height, width = images.shape[-2:]
        maps = self._maps(self._padded(images), self.out_indices, self.norm_maps)
        return [
            each[..., : -(-height // level.stride), : -(-width // level.stride)]
            for each, level in zip(maps, self.levels, strict=True)
        ]

    def tokens(self, images: Tensor) -> Tokens:
        """images: (B, C, H, W), normalised -> patches (B, h * w, C), cropped to the picture, prefix (B, P, C)."""
        height, width = images.shape[-2:]
        padded = self._padded(images)
        features = self._network().forward_features(padded)
        if self.tokens_as_map:
            grid = features if self.channels_last else features.permute(0, 2, 3, 1)  # (B, H, W, C)
            prefix = features.new_zeros(grid.shape[0], 0, grid.shape[-1])
        else:
            rows = -(-padded.shape[-2] // self.token_stride)
            prefix, patches = features[:, : self.num_prefix], features[:, self.num_prefix :]
            grid = patches.reshape(patches.shape[0], rows, -1, patches.shape[-1])  # (B, H, W, C)
        size = (-(-height // self.token_stride), -(-width // self.token_stride))
        return Tokens(grid[:, : size[0], : size[1]].flatten(1, 2), prefix, size)

    def embed(self, images: Tensor) -> Tensor:
        """images: (B, C, H, W), normalised -> (B, embed_dim), as timm pools before its classifier."""
        network = self._network()
        return network.forward_head(network.forward_features(self._padded(images)), pre_logits=True)

    def _padded(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        bottom, right = -height % self.multiple, -width % self.multiple
        return F.pad(images, (0, right, 0, bottom)) if bottom or right else images

    def layer_of(self, parameter: str) -> int:
        """timm's own grouping of a parameter."""
        if not self._layers:
            raise UserError("timm has no layer groups for this network: leave layer_decay out")
        return self._layers[parameter]

    def no_decay(self) -> set[str]:
        """What timm says must not decay."""
        listed: set[str] = getattr(self.model, "no_weight_decay", set)()
        return {name for name, _ in self.named_parameters() if name.removeprefix("model.") in listed}


def _layers(model: Any) -> dict[str, int]:
    from timm.models import group_parameters

    if not hasattr(model, "group_matcher"):
        return {}
    grouped = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    return {f"model.{name}": int(layer) for name, layer in grouped.items()}


def _create(config: TimmConfig) -> nn.Module:
    # Imported here: timm takes seconds, which our own backbones needn't pay.
    import timm

    name = config.architecture
    if not timm.is_model(name.partition(".")[0]):
        nearest = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = (
            f"did you mean {' or '.join(f'timm/{each}' for each in nearest)}?" if nearest else "see timm.list_models()"
        )
        raise UserError(f"timm has no architecture {name!r}; {hint}")
    options: dict[str, Any] = {"num_classes": 0, "in_chans": config.in_channels}
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    refusal = ""
    for any_size in _ANY_SIZE:
        try:
            model: nn.Module = timm.create_model(name, pretrained=False, **options, **any_size)
        except TypeError as error:
            refusal = str(error)
            continue
        if not hasattr(model, "forward_intermediates"):
            raise UserError(f"timm/{name} can't give its maps: timm has no forward_intermediates for it")
        return model
    raise UserError(f"timm/{name} refuses {sorted(options)}: {refusal}")
