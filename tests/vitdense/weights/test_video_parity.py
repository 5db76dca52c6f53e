"""Our networks of clips equal transformers' at 1e-5 and 1e-9, at their own size and length and at others.

Where transformers' network is wrong at another size or length, a test shows it, and the reference is the same network
built for that size, with the tables of the first.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    TimesformerConfig,
    TimesformerForVideoClassification,
    TimesformerModel,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEModel,
    VivitConfig,
    VivitForVideoClassification,
    VivitModel,
    VJEPA2Config,
    VJEPA2Model,
)

from tests.vitdense.weights.video_maps import SINGLE, apart, as_map, assert_equal, clip, frames_first
from vitdense.contracts import Backbone

Enliven = Callable[[nn.Module], nn.Module]
Fill = Callable[..., Backbone]
SMALL: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "out_indices": (0, 1)}
WIDTHS: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
COMMON: dict[str, Any] = {**WIDTHS, "intermediate_size": 128, "image_size": 32}


# ---------------------------------------------------------------- TimeSformer


def timesformer(frames: int = 4, side: int = 32, **options: Any) -> Any:
    config = TimesformerConfig(**{**COMMON, "image_size": side}, patch_size=8, num_frames=frames, **options)
    return nn.Module.eval(TimesformerModel(config))


def told_size(model: Any, frames: int, side: int, **options: Any) -> Any:
    """The same weights in a network whose layers are told another size; its embedding resizes the first's tables."""
    other = timesformer(frames, side, **options)
    other.embeddings.position_embeddings = nn.Parameter(torch.zeros_like(model.embeddings.position_embeddings))
    other.embeddings.time_embeddings = nn.Parameter(torch.zeros_like(model.embeddings.time_embeddings))
    other.load_state_dict(model.state_dict())
    return other


def of_timesformer(model: Any, clips: Tensor) -> list[Tensor]:
    """transformers keeps the times of a place together."""
    frames, rows, columns = clips.shape[2], clips.shape[3] // 8, clips.shape[4] // 8
    given = model(frames_first(clips), output_hidden_states=True)

    def ordered(tokens: Tensor) -> Tensor:
        return torch.unflatten(tokens[:, 1:], 1, (rows * columns, frames)).transpose(1, 2).flatten(1, 2)

    states = [model.layernorm(given.hidden_states[1]), given.last_hidden_state]
    maps = [as_map(ordered(each), (frames, rows, columns)) for each in states]
    return [*maps, ordered(given.last_hidden_state), given.last_hidden_state[:, 0]]


@torch.no_grad()
@pytest.mark.parametrize("size", [(4, 32, 32), (7, 32, 32), (1, 32, 32), (4, 56, 32), (5, 24, 40), (12, 48, 16)])
def test_timesformer_is_equal_at_any_size(size: tuple[int, int, int], enliven: Enliven, fill: Fill) -> None:
    stored: Any = enliven(timesformer())
    ours = fill("timesformer_base_patch16", stored.state_dict(), SMALL)
    assert_equal(ours, told_size(stored, size[0], size[2]), clip(*size), of_timesformer)


@torch.no_grad()
def test_timesformer_with_joint_attention_is_equal(enliven: Enliven, fill: Fill) -> None:
    theirs: Any = enliven(timesformer(attention_type="joint_space_time"))
    ours = fill("timesformer_base_patch16", theirs.state_dict(), SMALL)
    for size in ((4, 32, 32), (6, 40, 24)):
        assert_equal(ours, theirs, clip(*size), of_timesformer)


@torch.no_grad()
def test_transformers_timesformer_is_wrong_at_another_length(enliven: Enliven) -> None:
    """Its layers take the config's number of frames for the clip's: they mix places where they should mix times."""
    stored: Any = enliven(timesformer())
    clips = clip(2, 32, 32)
    assert apart(of_timesformer(stored, clips), of_timesformer(told_size(stored, 2, 32), clips)) > 0.1
    with pytest.raises(RuntimeError):  # 3 x 5 patches in rows of 4
        stored(frames_first(clip(4, 24, 40)))


# ---------------------------------------------------------------- ViViT


def vivit(frames: int = 8, side: int = 32) -> Any:
    config = VivitConfig(**{**COMMON, "image_size": side}, tubelet_size=[2, 8, 8], num_frames=frames)
    return nn.Module.eval(VivitModel(config, add_pooling_layer=False))


def of_vivit(model: Any, clips: Tensor) -> list[Tensor]:
    grid = (clips.shape[2] // 2, clips.shape[3] // 8, clips.shape[4] // 8)
    given = model(frames_first(clips), output_hidden_states=True)
    states = [model.layernorm(given.hidden_states[1]), given.last_hidden_state]
    return [*(as_map(each[:, 1:], grid) for each in states), states[1][:, 1:], states[1][:, 0]]


@torch.no_grad()
def test_vivit_is_equal(enliven: Enliven, fill: Fill) -> None:
    theirs: Any = enliven(vivit())
    ours = fill("vivit_base_patch16", theirs.state_dict(), {**SMALL, "frames": 8})
    assert ours.load_report is not None
    assert not ours.load_report.resized
    assert_equal(ours, theirs, clip(8, 32, 32), of_vivit)


@torch.no_grad()
@pytest.mark.parametrize(("frames", "side"), [(14, 32), (2, 32), (8, 48), (4, 24)])
def test_vivit_is_equal_where_its_table_was_resized(
    frames: int, side: int, enliven: Enliven, fill: Fill, tmp_path: Path
) -> None:
    """ViViT's authors resize its table before they train on: bilinear in space, linear in time."""
    stored: Any = enliven(vivit())
    ours: Any = fill("vivit_base_patch16", stored.state_dict(), {**SMALL, "frames": 8})
    table = stored.embeddings.position_embeddings[:, 1:].unflatten(1, (4, 4, 4)).movedim(-1, 1)  # (1, C, t, h, w)
    cells = (frames // 2, side // 8, side // 8)
    planes = nn.functional.interpolate(
        table.transpose(1, 2)[0], size=cells[1:], mode="bilinear", antialias=True
    ).movedim(0, 1)  # (C, t, H, W)
    rows = nn.functional.interpolate(planes.flatten(2).transpose(1, 2), size=cells[0], mode="linear")  # (C, H * W, T)
    rows = rows.permute(2, 1, 0).reshape(1, -1, 32)
    theirs = vivit(frames, side)
    first = stored.embeddings.position_embeddings[:, :1]
    theirs.load_state_dict({**stored.state_dict(), "embeddings.position_embeddings": torch.cat([first, rows], 1)})
    found = [*ours(clip(frames, side, side)), ours.embed(clip(frames, side, side))]
    maps = of_vivit(theirs, clip(frames, side, side))
    assert apart(found, [*maps[:2], maps[3]]) < SINGLE
    stored.save_pretrained(tmp_path)
    again: Any = fill("vivit_base_patch16", tmp_path, {**SMALL, "frames": frames, "image_size": side})
    assert again.load_report.resized == ("pos_embed",)
    assert apart([*again(clip(frames, side, side)), again.embed(clip(frames, side, side))], found) < SINGLE


@torch.no_grad()
def test_transformers_vivit_takes_no_other_size(enliven: Enliven) -> None:
    """Without `interpolate_pos_encoding` it refuses; with it, it takes the table of all times for one square."""
    theirs: Any = enliven(vivit())
    with pytest.raises(ValueError, match="doesn't match model"):
        theirs(frames_first(clip(8, 48, 32)))
    with pytest.raises(RuntimeError):
        theirs(frames_first(clip(8, 48, 32)), interpolate_pos_encoding=True)


# ---------------------------------------------------------------- VideoMAE


def videomae(size: tuple[int, int, int] = (8, 32, 32), **options: Any) -> VideoMAEConfig:
    sizes: Any = {"num_frames": size[0], "image_size": size[1:], "patch_size": 8, "tubelet_size": 2}
    return VideoMAEConfig(**{**COMMON, **sizes, **options})


def of_videomae(model: Any, clips: Tensor) -> list[Tensor]:
    """Of the classifier, whose base model ends without a norm: the norm of the mean is the classifier's."""
    grid = (clips.shape[2] // 2, clips.shape[3] // 8, clips.shape[4] // 8)
    given = model.videomae(frames_first(clips), output_hidden_states=True)
    last = given.last_hidden_state
    return [as_map(given.hidden_states[1], grid), as_map(last, grid), last, model.fc_norm(last.mean(1))]


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 32, 32), (2, 32, 32), (6, 48, 24), (16, 16, 40)])
def test_videomae_is_equal_at_any_size(size: tuple[int, int, int], enliven: Enliven, fill: Fill) -> None:
    stored: Any = enliven(VideoMAEForVideoClassification(videomae()))
    ours = fill("videomae_base_patch16", stored.state_dict(), SMALL)
    theirs: Any = nn.Module.eval(VideoMAEForVideoClassification(videomae(size)))
    theirs.load_state_dict(stored.state_dict())
    assert_equal(ours, theirs, clip(*size), of_videomae)


@torch.no_grad()
@pytest.mark.parametrize("options", [{"qv_bias": False}, {"use_mean_pooling": False}])
def test_other_videomaes_are_equal(options: dict[str, Any], enliven: Enliven, fill: Fill) -> None:
    theirs: Any = enliven(VideoMAEModel(videomae(**options)))
    ours = fill("videomae_base_patch16", theirs.state_dict(), SMALL)
    clips = clip(8, 32, 32)
    assert apart([ours.tokens(clips).patches], [theirs(frames_first(clips)).last_hidden_state]) < SINGLE


def test_transformers_videomae_takes_no_other_size(enliven: Enliven) -> None:
    theirs: Any = enliven(VideoMAEModel(videomae()))
    with pytest.raises(ValueError, match="doesn't match model"):
        theirs(frames_first(clip(8, 48, 32)))
    with pytest.raises(RuntimeError):
        theirs(frames_first(clip(6, 32, 32)))


# ---------------------------------------------------------------- V-JEPA 2


def vjepa2(side: int = 32, width: int = 48) -> Any:
    config = VJEPA2Config(
        **{**WIDTHS, "hidden_size": width},
        patch_size=8,
        crop_size=side,
        frames_per_clip=8,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
    )
    return nn.Module.eval(VJEPA2Model(config))


def of_vjepa2(model: Any, clips: Tensor) -> list[Tensor]:
    grid = (-(-clips.shape[2] // 2), clips.shape[3] // 8, clips.shape[4] // 8)
    states: list[Tensor] = []
    hook = model.encoder.layer[0].register_forward_hook(lambda _, __, out: states.append(out[0]))
    last = model.encoder(frames_first(clips)).last_hidden_state
    hook.remove()
    return [as_map(model.encoder.layernorm(states[0]), grid), as_map(last, grid), last, last.mean(1)]


def places(grid: tuple[int, int, int]) -> tuple[Tensor, ...]:
    axes = torch.meshgrid(*(torch.arange(count) for count in grid), indexing="ij")
    return tuple(axis.flatten() for axis in axes)


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 32, 32), (16, 32, 32), (2, 32, 32), (1, 32, 32), (6, 48, 48)])
@pytest.mark.parametrize("width", [48, 32])
def test_vjepa2_is_equal_at_any_length_and_square(
    size: tuple[int, int, int], width: int, enliven: Enliven, fill: Fill
) -> None:
    """Heads of 24 channels divide into three shares of pairs, those of 16 leave some as they are."""
    stored: Any = enliven(vjepa2(width=width))
    ours = fill("vjepa2_large_patch16", stored.state_dict(), {**SMALL, "embed_dim": width})
    theirs = vjepa2(size[1], width)
    theirs.load_state_dict(stored.state_dict())
    assert_equal(ours, theirs, clip(*size), of_vjepa2)


@torch.no_grad()
def test_transformers_vjepa2_is_wrong_at_another_size(enliven: Enliven, fill: Fill) -> None:
    """It counts rows and columns of the size in its config; told where the patches are, it is equal to ours."""
    theirs: Any = enliven(vjepa2())
    ours = fill("vjepa2_large_patch16", theirs.state_dict(), {**SMALL, "embed_dim": 48})
    clips = clip(4, 24, 56)
    found = [*ours(clips), ours.tokens(clips).patches, ours.embed(clips)]
    assert apart(found, of_vjepa2(theirs, clips)) > 0.1
    for layer in theirs.encoder.layer:
        layer.attention.get_position_ids = lambda *_, **__: places((2, 3, 7))
    assert_equal(ours, theirs, clips, of_vjepa2)


# ---------------------------------------------------------------- files


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "config", "name"),
    [
        (TimesformerForVideoClassification, timesformer().config, "timesformer_base_patch16"),
        (VivitForVideoClassification, vivit().config, "vivit_base_patch16"),
        (VideoMAEForVideoClassification, videomae(), "videomae_base_patch16"),
        (VideoMAEForPreTraining, videomae(use_mean_pooling=False), "videomae_base_patch16"),
        (VJEPA2Model, vjepa2().config, "vjepa2_large_patch16"),
    ],
)
def test_what_save_pretrained_writes_loads(
    kind: Any, config: Any, name: str, enliven: Enliven, fill: Fill, tmp_path: Path
) -> None:
    theirs: Any = enliven(kind(config))
    theirs.save_pretrained(tmp_path)
    shape = {**SMALL, "embed_dim": config.hidden_size}
    from_file, from_memory = fill(name, tmp_path, shape), fill(name, theirs.state_dict(), {**shape, "frames": 8})
    frames = getattr(config, "num_frames", 8)
    clips = clip(frames, 32, 32)
    for each, other in zip(from_file(clips), from_memory(clips), strict=True):
        assert torch.equal(each, other)
    base = theirs if kind is VJEPA2Model else getattr(theirs, theirs.base_model_prefix)
    if kind is TimesformerForVideoClassification:
        assert apart([from_file.embed(clips)], [base(frames_first(clips)).last_hidden_state[:, 0]]) < SINGLE
    elif kind is VJEPA2Model:
        expected = base.encoder(frames_first(clips)).last_hidden_state
        assert apart([from_file.tokens(clips).patches], [expected]) < SINGLE
    else:
        first = int(kind is VivitForVideoClassification)
        expected = base(frames_first(clips), **({} if first else {"bool_masked_pos": None})).last_hidden_state[
            :, first:
        ]
        assert apart([from_file.tokens(clips).patches], [expected]) < SINGLE
