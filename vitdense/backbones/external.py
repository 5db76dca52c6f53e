"""What all backbones of other libraries share: padding, cropping, measured levels, tokens, vectors, their weights."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from vitdense.backbones.options import evenly_spaced, pixel_statistics, resolve_out_indices
from vitdense.backbones.probing import (
    EASY,
    Features,
    Measured,
    Memory,
    Size,
    Sizes,
    layers_in_order,
    measure,
    saved_for_backward,
    tables_and_tokens,
)
from vitdense.contracts import Backbone, BackboneConfig, Level, Tokens
from vitdense.errors import UserError

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


class Converted(NamedTuple):
    """A checkpoint under the names of the network that loads it; `options` are facts that rank below a user's."""

    state: Mapping[str, Tensor]
    options: Mapping[str, Any]
    left_out: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()


class ExternalConfig(BackboneConfig):
    """`architecture` is the library's own name.

    `norm_maps` puts the network's final norm on the maps; left out, it does so where all maps have one stride.
    `image_size` is what position tables are made for. Networks that take one size only need it: pictures up to it are
    then padded to it. `config` overrides what the library builds the network with: its keywords of timm.create_model,
    fields of transformers' config, fields of open_clip's vision_cfg.
    """

    library: ClassVar[str]

    architecture: str
    norm_maps: bool | None = None
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    config: dict[str, Any] = Field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name as users write it."""
        return f"{self.library}/{self.architecture}"

    @property
    def built_for(self) -> Size | None:
        """`image_size` as height and width."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    def locate(self, source: str) -> Any:
        """A name such as "default" -> a file, folder, hub name or mapping that holds the weights it means."""
        raise NotImplementedError

    def convert(self, state: Mapping[str, Tensor], facts: Mapping[str, Any], source: str) -> Converted:
        """A checkpoint's tensors, and what the file beside them says -> tensors under the network's own names."""
        raise NotImplementedError


class ExternalBackbone(Backbone):
    """A network of another library, `model`, behind our contract.

    Pictures are padded at the right and bottom to what the network takes, and maps are cropped to
    ceil(size / stride). Strides, channels and sizes are measured when it is made. A library's class says how to get
    maps, last features and a vector.
    """

    sizes: Sizes

    def __init__(
        self, config: ExternalConfig, model: nn.Module, *, native: Size | None, statistics: Statistics
    ) -> None:
        super().__init__()
        self.label, self.in_channels = config.label, config.in_channels
        if config.frozen_stages:
            raise UserError(f"{self.label} has no stages to freeze: frozen_stages must be 0")
        self.mean, self.std = pixel_statistics(config, *statistics)
        self.model = model
        self._memory = Memory(model)
        only = config.built_for
        tried = (only,) if only is not None else (EASY,) if native is None else (EASY, native)
        was_training = model.training
        model.eval()
        self._prepare(tried)
        every = measure(self.label, self._probe(None, norm=False), config.in_channels, tried, only=only)
        plain = len({level.stride for level in every.levels}) == 1
        self.out_indices = resolve_out_indices(config.out_indices, len(every.levels), _default(every.levels, plain))
        self.norm_maps = self._has_norm(plain) if config.norm_maps is None else config.norm_maps
        chosen = measure(
            self.label, self._probe(self.out_indices, norm=self.norm_maps), config.in_channels, tried, only=only
        )
        self.levels, self.sizes = chosen.levels, chosen.sizes
        self._measured_at = chosen.size
        self._measure_last(every)
        if config.grad_checkpointing:
            self._recompute(chosen)
        self._layers = {f"model.{name}": layer for name, layer in self._group_layers(chosen, nested=not plain).items()}
        self.num_layers = max(self._layers.values(), default=0)
        model.train(was_training)

    # ---------------------------------------------------------------- what a library's class says

    @abstractmethod
    def _maps(self, images: Tensor, indices: tuple[int, ...] | None, norm: bool) -> list[Tensor]:
        """images: (B, C, H, W), padded -> maps (B, C_i, h_i, w_i) of these indices, or of all."""

    @abstractmethod
    def _last(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images: (B, C, H, W), padded -> prefix tokens (B, P, C) and patches (B, N, C) or (B, h, w, C), normed."""

    @abstractmethod
    def _vector(self, images: Tensor) -> Tensor:
        """images: (B, C, H, W), padded -> (B, embed_dim)."""

    @abstractmethod
    def _enable_recompute(self) -> None:
        """Turns the library's gradient checkpointing on; UserError where it has none."""

    def _prepare(self, tried: tuple[Size, ...]) -> None:
        """What must be known of `model` before its maps can be had."""

    def _has_norm(self, plain: bool) -> bool:
        """Whether maps are normed unless a user says otherwise."""
        return plain

    def _group_layers(self, chosen: Measured, *, nested: bool) -> dict[str, int]:
        images = torch.zeros(1, self.in_channels, *chosen.size)

        def run() -> None:
            self._maps(images, self.out_indices, self.norm_maps)
            self._vector(images)

        return layers_in_order(self.model, run, nested=nested)

    def _undecayed(self) -> set[str]:
        return tables_and_tokens(self.model)

    # ---------------------------------------------------------------- measuring

    def _probe(self, indices: tuple[int, ...] | None, *, norm: bool) -> Features:
        def maps(images: Tensor) -> list[Tensor]:
            try:
                return self._maps(images, indices, norm)
            finally:
                self._memory.watch(self.model)

        return maps

    @torch.no_grad()
    def _measure_last(self, every: Measured) -> None:
        """The stride of the last features and the width of the vector."""
        images = torch.zeros(1, self.in_channels, *every.size)
        _, patches = self._last(images)
        cells = patches[0, ..., 0].numel()
        stride = round((every.size[0] * every.size[1] / cells) ** 0.5)
        if every.size[0] // stride * (every.size[1] // stride) != cells:
            raise UserError(f"{self.label} ends in {cells} patches for a picture of {every.size}: no whole stride")
        self.last_stride = stride
        self.embed_dim = self._vector(images).shape[-1]

    def _recompute(self, chosen: Measured) -> None:
        """Turns recomputing on, and sees that less is kept for the backward pass: some networks ignore it."""
        images = torch.zeros(1, self.in_channels, *chosen.size)
        probe = self._probe(self.out_indices, norm=self.norm_maps)
        for module in self.model.modules():
            # Some recompute in training mode only; running averages must not learn from zeros.
            module.training = not isinstance(module, nn.modules.batchnorm._NormBase | nn.Dropout)
        with torch.random.fork_rng(devices=[]):
            before = saved_for_backward(probe, images)
            self._enable_recompute()
            after = saved_for_backward(probe, images)
        self.model.eval()
        if after >= before:
            raise UserError(f"{self.label} ignores gradient checkpointing for its maps: leave grad_checkpointing out")

    # ---------------------------------------------------------------- the contract

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
        height, width = (-(-side // self.last_stride) for side in images.shape[-2:])
        padded = self._padded(images)
        prefix, patches = self._last(padded)
        if patches.ndim == 3:
            rows = -(-padded.shape[-2] // self.last_stride)
            patches = patches.reshape(patches.shape[0], rows, -1, patches.shape[-1])  # (B, h, w, C)
        return Tokens(patches[:, :height, :width].flatten(1, 2), prefix, (height, width))

    def embed(self, images: Tensor) -> Tensor:
        """images: (B, C, H, W), normalised -> (B, embed_dim), as the library pools before any classifier."""
        return self._vector(self._padded(images))

    def _padded(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise UserError(f"expected images (B, {self.in_channels}, H, W), given {tuple(images.shape)}")
        self._memory.undo(self.model)
        return self.sizes.pad(images, self.label)

    def layer_of(self, parameter: str) -> int:
        """The library's own grouping where it has one, else the order in which the network's blocks are run."""
        if not self._layers:
            raise UserError(f"{self.label} has no layer groups: leave layer_decay out")
        return self._layers[parameter]

    def no_decay(self) -> set[str]:
        """Position tables and tokens."""
        listed = self._undecayed()
        return {name for name, _ in self.named_parameters() if name.removeprefix("model.") in listed}

    def unused_in_maps(self) -> set[str]:
        """Found by asking which parameters the maps of a black picture have gradients for."""
        wanted = {name: p for name, p in self.named_parameters() if p.requires_grad}
        like = next(self.model.parameters())
        images = torch.zeros(1, self.in_channels, *self._measured_at, device=like.device, dtype=like.dtype)
        # In training mode batch norms would learn from the black picture.
        was_training = self.model.training
        self.model.eval()
        with torch.enable_grad():
            total = torch.stack([each.sum() for each in self._maps(images, self.out_indices, self.norm_maps)]).sum()
        found = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
        self.model.train(was_training)
        return {name for name, gradient in zip(wanted, found, strict=True) if gradient is None}


def _default(levels: tuple[Level, ...], plain: bool) -> tuple[int, ...]:
    """Four maps at even distances of a plain network, the last four of a pyramid."""
    return evenly_spaced(len(levels)) if plain else tuple(range(max(len(levels) - 4, 0), len(levels)))
