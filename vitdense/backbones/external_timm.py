"""Backbones that timm builds, under names `timm/<architecture>`."""

import difflib
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from vitdense.backbones.external import Converted, ExternalBackbone, ExternalConfig, Statistics
from vitdense.backbones.probing import Measured, Size, first_line
from vitdense.contracts import BACKBONES
from vitdense.errors import UserError
from vitdense.layers.frozen import freeze_norms

# How timm's families spell "any size"; the first that an architecture takes.
_ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


class TimmNetwork(Protocol):
    """What is used of a timm model."""

    pretrained_cfg: Mapping[str, Any]

    def forward_intermediates(self, x: Tensor, **options: Any) -> list[Tensor]:
        """Maps (B, C, H, W)."""

    def forward_features(self, x: Tensor) -> Tensor | list[Tensor]:
        """The last layer's features, as tokens or a map, or those of all stages."""

    def forward_head(self, x: Tensor | list[Tensor], pre_logits: bool) -> Tensor:
        """Pooled features."""

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Recompute blocks in the backward pass."""


@BACKBONES.register_family("timm")
class TimmConfig(ExternalConfig):
    """`architecture` is timm's name, with or without a tag; `out_indices` are timm's. `frozen_norm`: batch norms learn
    nothing and are folded into the convolutions before them.
    """

    library: ClassVar[str] = "timm"

    frozen_norm: bool = False

    @classmethod
    def listed(cls) -> list[str]:
        """All of timm's architectures."""
        import timm

        return [f"timm/{name}" for name in timm.list_models()]

    def build(self) -> "TimmBackbone":
        """timm's network with fresh weights."""
        model = create_timm(self.architecture, self)
        published = cast(TimmNetwork, model).pretrained_cfg
        backbone = TimmBackbone(self, model, statistics=(tuple(published["mean"]), tuple(published["std"])))
        if self.frozen_norm:
            backbone.freeze_norms()
        return backbone

    def locate(self, source: str) -> Any:
        """timm's own pretrained weights, which it adapts to the input channels."""
        if source != "default":
            return source
        import timm
        from huggingface_hub.errors import HfHubHTTPError

        try:
            model = timm.create_model(self.architecture, pretrained=True, num_classes=0, in_chans=self.in_channels)
        except (HfHubHTTPError, OSError, RuntimeError) as error:
            raise UserError(
                f"timm can't fetch its weights for {self.architecture!r} ({first_line(error)}); give the path of a "
                "checkpoint file, or leave weights out"
            ) from error
        return model.state_dict()

    def convert(self, state: Mapping[str, Tensor], facts: Mapping[str, Any], source: str) -> Converted:
        """timm's names stay, and its classifier is left out."""
        published, classifiers = published_by_timm(self.architecture)
        published = {**published, **facts.get("pretrained_cfg", {})}
        left_out = tuple(key for key in state if key.startswith(classifiers))
        return Converted(
            {key: tensor for key, tensor in state.items() if key not in left_out},
            {key: tuple(published[key]) for key in ("mean", "std") if key in published},
            left_out,
        )


class TimmBackbone(ExternalBackbone):
    """A timm network, with the maps of its `forward_intermediates`."""

    def __init__(self, config: ExternalConfig, model: nn.Module, *, statistics: Statistics) -> None:
        native = cast(TimmNetwork, model).pretrained_cfg["input_size"][1:]
        super().__init__(config, model, native=(native[0], native[1]), statistics=statistics)

    def freeze_norms(self) -> None:
        """Batch norms learn nothing from here on; UserError where there is none."""
        images = torch.zeros(1, self.in_channels, *self._measured_at)
        was_training = self.model.training
        if not freeze_norms(self.model.eval(), lambda: self._last(images)):
            raise UserError(f"{self.label} has no batch norm: leave frozen_norm out")
        self.model.train(was_training)

    def _network(self) -> TimmNetwork:
        # timm has no type that says what its models can do, so that this border is a cast.
        return cast(TimmNetwork, self.model)

    def _maps(self, images: Tensor, indices: tuple[int, ...] | None, norm: bool) -> list[Tensor]:
        return self._network().forward_intermediates(
            images,
            indices=None if indices is None else list(indices),
            norm=norm,
            stop_early=True,
            output_fmt="NCHW",
            intermediates_only=True,
        )

    def _prepare(self, tried: tuple[Size, ...]) -> None:
        self.num_prefix = 0
        self.channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"

    def _measure_last(self, every: Measured) -> None:
        _, features = self._last(torch.zeros(1, self.in_channels, *every.size))
        if features.ndim == 3:
            # Tokens beyond the last map's cells stand before them in all of timm's networks.
            stride = every.levels[-1].stride
            self.num_prefix = features.shape[1] - (every.size[0] // stride) * (every.size[1] // stride)
        super()._measure_last(every)

    def _last(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self._network().forward_features(images)
        if isinstance(features, list):  # EfficientViM's head mixes what all its stages give.
            features = self._maps(images, None, False)[-1]
        if features.ndim == 3:
            return features[:, : self.num_prefix], features[:, self.num_prefix :]
        patches = features if self.channels_last else features.permute(0, 2, 3, 1)  # (B, h, w, C)
        return features.new_zeros(patches.shape[0], 0, patches.shape[-1]), patches

    def _vector(self, images: Tensor) -> Tensor:
        network = self._network()
        return network.forward_head(network.forward_features(images), pre_logits=True)

    def _enable_recompute(self) -> None:
        try:
            self._network().set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:
            raise UserError(f"{self.label} can't recompute: timm has no gradient checkpointing for it") from error

    def _group_layers(self, chosen: Measured, *, nested: bool) -> dict[str, int]:
        from timm.models import group_parameters

        model: Any = self.model
        if not hasattr(model, "group_matcher"):
            return super()._group_layers(chosen, nested=nested)
        grouped = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
        return {name: int(layer) for name, layer in grouped.items()}

    def _undecayed(self) -> set[str]:
        listed: set[str] = getattr(self.model, "no_weight_decay", set)()
        return listed


def create_timm(name: str, config: ExternalConfig, **options: Any) -> nn.Module:
    """A timm network without classifier, for any size where timm can build it so; UserError where it can't."""
    # Imported here: timm takes seconds, which our own backbones needn't pay.
    import timm

    if not timm.is_model(name.partition(".")[0]):
        nearest = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = (
            f"did you mean {' or '.join(f'timm/{each}' for each in nearest)}?" if nearest else "see timm.list_models()"
        )
        raise UserError(f"timm has no architecture {name!r}; {hint}")
    options = {"num_classes": 0, "in_chans": config.in_channels, **options, **config.config}
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    if config.built_for is not None:
        options["img_size"] = config.built_for
    refusal = ""
    for any_size in _ANY_SIZE:
        try:
            model: nn.Module = timm.create_model(name, pretrained=False, **options, **any_size)
        except TypeError as error:
            refusal = first_line(error)
            continue
        if not hasattr(model, "forward_intermediates"):
            raise UserError(f"{config.label} can't give its maps: timm has no forward_intermediates for it")
        return model
    raise UserError(f"{config.label} refuses {sorted(options)}: {refusal}")


def published_by_timm(name: str) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """timm's record of a network, and the prefixes of its classifier's keys."""
    from dataclasses import asdict

    import timm

    record = timm.get_pretrained_cfg(name)
    if record is None:
        return {}, ("head.", "fc.", "classifier.")
    named = record.classifier or ()
    names = (named,) if isinstance(named, str) else tuple(named)
    return asdict(record), tuple(f"{each}." for each in names)
