"""Our backbones as transformers' own: importing this module teaches AutoConfig and AutoBackbone the type "vitdense"."""

from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.utils.generic import can_return_tuple

from vitdense.contracts import Backbone
from vitdense.errors import UserError
from vitdense.interop.blueprint import Blueprint


class VitdenseConfig(BackboneConfigMixin, PreTrainedConfig):  # type: ignore[no-untyped-call]
    """`name`, `options` and `adapter` are what `create_backbone` takes; the rest is read off the backbone.

    Stages are named stage1, stage2, ..., one for each of the backbone's levels, finest first; `out_features` or
    `out_indices` choose among them, and all are given where neither is set. Weights are no option here: hand a
    backbone that has them to `VitdenseBackbone.of`.
    """

    model_type = "vitdense"

    name: str = "swin_tiny"
    options: dict[str, Any] | None = None
    adapter: str | dict[str, Any] | None = None
    stage_channels: list[int] | None = None
    stage_strides: list[int] | None = None
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.stage_channels is None or self.stage_strides is None:
            for field, value in _read_off(self.blueprint.sketch()).items():
                setattr(self, field, value)
        self.stage_names = [f"stage{i + 1}" for i in range(len(self.stage_channels or ()))]
        features, indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        if features is None and indices is None:
            features = self.stage_names
        self.set_output_features_output_indices(out_features=features, out_indices=indices)
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]

    @classmethod
    def of(cls, backbone: Backbone, **options: Any) -> Self:
        """The config of a backbone that exists; `options` are those of transformers, such as out_indices."""
        return cls(**_read_off(backbone), **options)

    @property
    def blueprint(self) -> Blueprint:
        """What builds the backbone."""
        return Blueprint(self.name, self.options or {}, self.adapter)


class VitdenseBackbone(BackboneMixin, PreTrainedModel):  # type: ignore[no-untyped-call]
    """A backbone of ours with transformers' face: `feature_maps`, `channels`, save_pretrained and from_pretrained."""

    config_class = VitdenseConfig
    config: VitdenseConfig
    main_input_name = "pixel_values"
    input_modalities = "image"
    has_attentions = False
    _supports_sdpa = True

    def __init__(self, config: VitdenseConfig, backbone: Backbone | None = None) -> None:
        super().__init__(config)
        self.vitdense = config.blueprint.build() if backbone is None else backbone
        _agree(config, self.vitdense)
        self.num_features = [level.channels for level in self.vitdense.levels]
        for tensor in _tensors(self.vitdense).values():
            _mark_built(tensor)
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def of(cls, backbone: Backbone, **options: Any) -> Self:
        """A backbone that exists, its weights shared, not copied; `options` are those of VitdenseConfig.of."""
        return cls(VitdenseConfig.of(backbone, **options), backbone)

    @property
    def strides(self) -> list[int]:
        """Pixels to a cell in each of the feature maps, as `channels` are their channels."""
        chosen = self.config.out_features
        return [
            level.stride for level, name in zip(self.vitdense.levels, self.stage_names, strict=True) if name in chosen
        ]

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(self, pixel_values: Tensor, output_hidden_states: bool | None = None) -> BackboneOutput:
        """pixel_values: (B, C, H, W), normalised -> feature_maps, (B, C_i, ceil(H / s_i), ceil(W / s_i)) each."""
        maps = self.vitdense(pixel_values)
        chosen = self.config.out_features
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return BackboneOutput(
            feature_maps=tuple(each for each, name in zip(maps, self.stage_names, strict=True) if name in chosen),
            hidden_states=tuple(maps) if wanted else None,
        )

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # For code that is not its own, transformers leaves modules alone that have no tensors directly, as this one.
        super()._initialize_weights(module)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Called for every module when it is made, where it does nothing, and when it is loaded.

        Loading leaves tensors empty that no file holds, such as non-persistent buffers: they become as built.
        """
        if module is not self:
            return
        empty = {name: tensor for name, tensor in _tensors(self.vitdense).items() if not _has_values(tensor)}
        if empty:
            built = _tensors(self.config.blueprint.build())
            for name, tensor in empty.items():
                tensor.copy_(built[name])
                _mark_built(tensor)


def _read_off(backbone: Backbone) -> dict[str, Any]:
    return {
        **Blueprint.of(backbone).to_json(),
        "stage_channels": [level.channels for level in backbone.levels],
        "stage_strides": [level.stride for level in backbone.levels],
        "image_mean": list(backbone.mean),
        "image_std": list(backbone.std),
    }


def _agree(config: VitdenseConfig, backbone: Backbone) -> None:
    described = list(zip(config.stage_channels or (), config.stage_strides or (), strict=True))
    built = [(level.channels, level.stride) for level in backbone.levels]
    if described != built:
        raise UserError(
            f"the config says (channels, stride) {described}, and {config.name} with its options gives {built}: "
            "leave stage_channels and stage_strides out, and they are read off"
        )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(chain(module.named_parameters(), module.named_buffers()))


def _mark_built(tensor: Tensor) -> None:
    # A mark of our own: with transformers' (_is_hf_initialized) a key that a file lacks would not be reported missing.
    tensor._is_vitdense_built = True  # type: ignore[attr-defined]


def _has_values(tensor: Tensor) -> bool:
    return any(getattr(tensor, mark, False) for mark in ("_is_vitdense_built", "_is_hf_initialized"))


AutoConfig.register(VitdenseConfig.model_type, VitdenseConfig)
AutoBackbone.register(VitdenseConfig, VitdenseBackbone)
