"""Backbones that transformers builds, under names `hf/<model type>`, `hf/<repo>` or `hf/<folder>`."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vitdense.backbones.external import Converted, ExternalBackbone, ExternalConfig, Statistics
from vitdense.backbones.hf_network import (
    build_network,
    facts_for,
    gives_maps,
    is_folder,
    is_model_type,
    load_network,
    network_config,
    picture_types,
)
from vitdense.backbones.hf_states import lay_out, touched_pictures
from vitdense.backbones.options import IMAGENET_MEAN, IMAGENET_STD
from vitdense.backbones.probing import Size, first_line
from vitdense.contracts import BACKBONES
from vitdense.errors import UserError, WeightsError
from vitdense.layers.frozen import freeze_norms

# For networks that norm pictures themselves, such as RADIO.
_NONE: Statistics = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@BACKBONES.register_family("hf")
class HfConfig(ExternalConfig):
    """`architecture` is a model type with its default config, a repository of the hub, or a folder with a config.json.

    `out_indices` count the blocks of a plain network, and the strides of a pyramid, whose last map of each counts.
    `frozen_norm`: batch norms learn nothing and are folded into the convolutions before them.
    """

    library: ClassVar[str] = "hf"

    frozen_norm: bool = False

    @classmethod
    def listed(cls) -> list[str]:
        """The model types that take pictures; repositories and folders can't be listed."""
        return [f"hf/{name}" for name in picture_types()]

    def build(self) -> "HfBackbone":
        """transformers' network with fresh weights."""
        return HfBackbone(self)

    def locate(self, source: str) -> Any:
        """ "default" is the folder or the repository of the name."""
        if source != "default":
            return source
        if is_folder(self.architecture):
            return Path(self.architecture).expanduser()
        if is_model_type(self.architecture):
            raise UserError(
                f"{self.label} is a kind of network, not published weights: give hf/<owner>/<repo>, or weights=<folder>"
            )
        return self.label

    def convert(self, state: Mapping[str, Tensor], facts: Mapping[str, Any], source: str) -> Converted:
        """Through transformers' own loader: names of old and new versions, of bare and whole models."""
        options = _statistics(facts)
        config = self
        if is_model_type(self.architecture) and not self.config and (adopted := facts_for(self, facts)):
            options["config"] = adopted
            config = self.model_copy(update={"config": adopted})
        left_out: tuple[str, ...] = ()
        if "backbone_config" in facts:
            left_out = tuple(key for key in state if not key.startswith("backbone."))
            state = {k.removeprefix("backbone."): tensor for k, tensor in state.items() if k not in left_out}
        network, missing, unplaced = load_network(config, state)
        fresh = {key for key in missing if "hidden_states_norms." in key or key.endswith("num_batches_tracked")}
        if missing - fresh:
            shown = ", ".join(sorted(missing - fresh)[:6])
            raise WeightsError(f"these weights lack {len(missing - fresh)} of {self.label}'s keys: {shown}")
        return Converted(network.state_dict(), options, (*left_out, *sorted(unplaced)), tuple(sorted(fresh)))


class HfBackbone(ExternalBackbone):
    """A network of transformers: the maps of AutoBackbone's classes, or the hidden states of AutoModel's.

    The maps of a plain network are normed by what makes `last_hidden_state` from its last hidden state. `embed` is
    `pooler_output` where the network has one of vision (not BERT's), else the first prefix token, else the mean of the
    last map. transformers runs all blocks, whatever `out_indices` asks for.
    """

    def __init__(self, config: HfConfig) -> None:
        theirs = network_config(config)
        size = getattr(theirs, "image_size", None)
        native = (size, size) if isinstance(size, int) else None if size is None else (size[0], size[1])
        model = build_network(config)
        normed_inside = getattr(theirs, "norm_mean", None) is not None
        statistics = _NONE if normed_inside else _published_statistics(config.architecture)
        super().__init__(config, model, native=native, statistics=statistics)
        if self.norm_maps and self._norm is None:
            raise UserError(f"{self.label} has no final norm for its maps: leave norm_maps out")
        if config.frozen_norm:
            images = torch.zeros(1, self.in_channels, *self._measured_at)
            if not freeze_norms(self.model.eval(), lambda: self._run(images)):
                raise UserError(f"{self.label} has no batch norm: leave frozen_norm out")
            self.model.train()

    @torch.no_grad()
    def _prepare(self, tried: tuple[Size, ...]) -> None:
        takes = inspect.signature(self.model.forward).parameters
        self._patch = int(self._network().config.patch_size) if "spatial_shapes" in takes else None
        self._maps_given = gives_maps(self.model)
        self._options = {} if self._maps_given else {"output_hidden_states": True}
        if "interpolate_pos_encoding" in takes:
            self._options["interpolate_pos_encoding"] = True
        outputs, size = self._first_run(tried)
        states, last = self._states(outputs), outputs.get("last_hidden_state")
        layouts = lay_out(self.label, [*states, *([] if last is None else [last])], size)
        self._layouts, self._last_layout = layouts[: len(states)], layouts[-1]
        strides = [layout.stride for layout in self._layouts]
        stages = list(self._network().out_features) if self._maps_given else ["stem", *[""] * (len(states) - 1)]
        if len(set(strides)) == 1:
            self._picks = [i for i, stage in enumerate(stages) if stage != "stem"]
        else:
            self._picks = [i for i, s in enumerate(strides) if s > 1 and s not in strides[i + 1 :]]
        plain = len(set(strides)) == 1 and states[-1].ndim == 3 and last is not None
        self._norm = _final_norm(self.model, states[-1], last) if plain else None

    def _has_norm(self, plain: bool) -> bool:
        return self._norm is not None

    def _first_run(self, tried: tuple[Size, ...]) -> tuple[Any, Size]:
        fault = ""
        for size in tried:
            try:
                return self._run(touched_pictures(self.in_channels, size)), size
            except (AssertionError, RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
                fault = first_line(error)
        raise UserError(f"{self.label} runs at none of {tried}: {fault}")

    def _network(self) -> Any:
        return self.model

    def _run(self, images: Tensor) -> Any:
        if self._patch is None:
            return self.model(images, **self._options)
        return self.model(**_naflex(images, self._patch), **self._options)

    def _states(self, outputs: Any) -> list[Tensor]:
        if self._maps_given:
            return list(outputs.feature_maps)
        states = outputs.get("reshaped_hidden_states") or outputs.get("hidden_states")
        if not states:
            raise UserError(f"{self.label} gives no hidden states")
        return list(states)

    def _maps(self, images: Tensor, indices: tuple[int, ...] | None, norm: bool) -> list[Tensor]:
        states, height = self._states(self._run(images)), images.shape[-2]
        maps = []
        for pick in self._picks if indices is None else [self._picks[i] for i in indices]:
            state = states[pick]
            if norm and self._norm is not None:
                state = self.model.get_submodule(self._norm)(state)
            maps.append(self._layouts[pick].patches(state, height).permute(0, 3, 1, 2))  # (B, C, h, w)
        return maps

    def _last(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self._last_of(self._run(images), images.shape[-2])

    def _last_of(self, outputs: Any, height: int) -> tuple[Tensor, Tensor]:
        last = outputs.get("last_hidden_state")
        if last is None:
            last = self._states(outputs)[-1]
        return self._last_layout.prefix(last), self._last_layout.patches(last, height)

    def _vector(self, images: Tensor) -> Tensor:
        outputs = self._run(images)
        pooled: Tensor | None = outputs.get("pooler_output")
        if pooled is not None:
            return pooled.flatten(1)  # (B, C, 1, 1) of convolutional networks -> (B, C)
        prefix, patches = self._last_of(outputs, images.shape[-2])
        return prefix[:, 0] if prefix.shape[1] else patches.mean(dim=(1, 2))

    def _enable_recompute(self) -> None:
        if not self._network().supports_gradient_checkpointing:
            raise UserError(f"{self.label} can't recompute: transformers has no gradient checkpointing for it")
        network = self._network()
        # transformers 5.2x renamed it.
        enable = getattr(network, "activation_checkpointing_enable", network.gradient_checkpointing_enable)
        enable({"use_reentrant": False})


def _naflex(images: Tensor, patch: int) -> dict[str, Tensor]:
    """images: (B, C, H, W) -> what SigLIP 2 takes: patches (B, h * w, patch * patch * C), all of them to be seen."""
    batch, channels, height, width = images.shape
    rows, columns = height // patch, width // patch
    patches = images.reshape(batch, channels, rows, patch, columns, patch).permute(0, 2, 4, 3, 5, 1)
    patches = patches.reshape(batch, rows * columns, -1)
    return {
        "pixel_values": patches,
        "pixel_attention_mask": torch.ones(patches.shape[:2], dtype=torch.long, device=images.device),
        "spatial_shapes": torch.tensor([[rows, columns]] * batch, device=images.device),
    }


def _final_norm(model: nn.Module, raw: Tensor, last: Tensor) -> str | None:
    """The name of the norm that makes `last` of `raw`; where the network leaves patches unnormed, post_layernorm."""
    norms = {
        name: module
        for name, module in model.named_modules()
        if name.count(".") < 2 and isinstance(getattr(module, "weight", None), Tensor)
    }
    fitting = [name for name, module in norms.items() if module.get_parameter("weight").shape == raw.shape[-1:]]
    for name in fitting:
        if torch.allclose(norms[name](raw), last, atol=1e-5):
            return str(name)
    unused = torch.equal(raw, last)
    named = [name for name in fitting if unused and name.endswith("post_layernorm")]
    return str(named[0]) if named else None


def _published_statistics(name: str) -> Statistics:
    """Of the preprocessor_config.json beside the config; model types have none that holds for all their weights."""
    from huggingface_hub import try_to_load_from_cache

    file = "preprocessor_config.json"
    path: Any = None
    if is_folder(name):
        path = Path(name).expanduser() / file
    elif not is_model_type(name):
        path = try_to_load_from_cache(name, file)
    if isinstance(path, str | Path) and Path(path).is_file():
        found = _statistics(json.loads(Path(path).read_text(encoding="utf-8")))
        if found:
            return found["mean"], found["std"]
    return IMAGENET_MEAN, IMAGENET_STD


def _statistics(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Mean and std that a preprocessor's file states."""
    if facts.get("do_normalize") is False or "norm_mean" in facts:
        return {"mean": _NONE[0], "std": _NONE[1]}
    mean, std = facts.get("image_mean"), facts.get("image_std")
    return {} if mean is None or std is None else {"mean": tuple(mean), "std": tuple(std)}
