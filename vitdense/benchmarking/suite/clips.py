"""Rows of networks of clips: four maps from every third block of TimeSformer, ViViT and VideoMAE, of width 384."""

from typing import Any

import torch
from torch import Tensor, nn

from vitdense.backbones.options import evenly_spaced
from vitdense.benchmarking.rows import Device, Goal, Row
from vitdense.benchmarking.suite.maps import MapsWork
from vitdense.benchmarking.suite.vit import ViTSize

SMALL = ViTSize(112, 16, 384, 12, 6)
TINY = ViTSize(48, 16, 48, 4, 3)
TUBELET = 2
NOTES = (
    "Ours and transformers' are built for this size and length: no table of positions is resized in the step.",
    "transformers keeps all hidden states, and gives them without the final norm.",
)


class _Clips(ViTSize):
    """The same, whose tables of positions are for so many frames."""

    frames = 8

    def options(self) -> dict[str, Any]:
        """As options of ours."""
        return {**super().options(), "frames": self.frames}


class _LongClips(_Clips):
    frames = 16


def _of(kind: type[_Clips], size: ViTSize) -> _Clips:
    return kind(size.side, size.patch, size.embed_dim, size.depth, size.num_heads)


def _timesformer(size: _Clips) -> nn.Module:
    from transformers import TimesformerConfig, TimesformerModel

    model: nn.Module = TimesformerModel(TimesformerConfig(**size.transformers_options(), num_frames=size.frames))
    return model


def _timesformer_maps(network: Any, clips: Tensor) -> list[Tensor]:
    """transformers keeps the times of a place together."""
    grid = (clips.shape[3] // 16, clips.shape[4] // 16, clips.shape[2])
    maps = _states(network, clips)
    return [torch.unflatten(each[:, 1:].mT, 2, grid).movedim(4, 2) for each in maps]  # (B, C, T, h, w)


def _vivit(size: _Clips) -> nn.Module:
    from transformers import VivitConfig, VivitModel

    options = size.transformers_options()
    patch = options.pop("patch_size")
    config = VivitConfig(**options, num_frames=size.frames, tubelet_size=[TUBELET, patch, patch])
    model: nn.Module = VivitModel(config, add_pooling_layer=False)
    return model


def _vivit_maps(network: Any, clips: Tensor) -> list[Tensor]:
    return [torch.unflatten(each[:, 1:].mT, 2, _grid(clips)) for each in _states(network, clips)]  # (B, C, T', h, w)


def _videomae(size: _Clips) -> nn.Module:
    from transformers import VideoMAEConfig, VideoMAEModel

    config = VideoMAEConfig(**size.transformers_options(), num_frames=size.frames, tubelet_size=TUBELET)
    model: nn.Module = VideoMAEModel(config)
    return model


def _videomae_maps(network: Any, clips: Tensor) -> list[Tensor]:
    return [torch.unflatten(each.mT, 2, _grid(clips)) for each in _states(network, clips)]  # (B, C, T', h, w)


def _states(network: Any, clips: Tensor) -> list[Tensor]:
    states = network(clips.transpose(1, 2), output_hidden_states=True).hidden_states
    return [states[i + 1] for i in evenly_spaced(len(states) - 1)]


def _grid(clips: Tensor) -> tuple[int, int, int]:
    return clips.shape[2] // TUBELET, clips.shape[3] // 16, clips.shape[4] // 16


_DIVIDED = MapsWork("timesformer_base_patch16", _of(_Clips, SMALL), _of(_Clips, TINY), train=True, frames=8)
_JOINT = MapsWork("vivit_base_patch16", _of(_LongClips, SMALL), _of(_LongClips, TINY), train=True, frames=16)
_MASKED = MapsWork("videomae_base_patch16", _of(_LongClips, SMALL), _of(_LongClips, TINY), train=False, frames=16)
_PLAIN = {"norm_maps": False}
_GOALS: dict[Device, Goal] = {"cpu": Goal(0.90, 0.70), "cuda": Goal(0.90, 0.70)}

ROWS = (
    Row(
        "timesformer_train",
        "TimeSformer-S/16, 8 x 112 x 112, 4 maps, forward and backward",
        _DIVIDED.ours,
        (_DIVIDED.against("transformers", "transformers", _timesformer, _timesformer_maps, _PLAIN),),
        _GOALS,
        NOTES,
    ),
    Row(
        "vivit_train",
        "ViViT-S/16x2, 16 x 112 x 112, 4 maps, forward and backward",
        _JOINT.ours,
        (_JOINT.against("transformers", "transformers", _vivit, _vivit_maps, _PLAIN),),
        _GOALS,
        NOTES,
    ),
    Row(
        "videomae_forward",
        "VideoMAE-S/16x2, 16 x 112 x 112, 4 maps, inference",
        _MASKED.ours,
        (_MASKED.against("transformers", "transformers", _videomae, _videomae_maps, _PLAIN),),
        notes=NOTES,
    ),
)
