"""Sources of weights: pickles, damaged files, places that lead nowhere, and the weights a preset names."""

import argparse
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.vitdense.weights.small_weights import nano, read
from vitdense.contracts import BACKBONES, Backbone
from vitdense.errors import UserError, WeightsError
from vitdense.weights import load_weights, read_weights
from vitdense.weights.published import PUBLISHED, published_for

Fill = Callable[..., Backbone]


def test_sharded_pickles_are_read(tmp_path: Path, fill: Fill) -> None:
    state = nano().state_dict()
    shards = [dict(list(state.items())[:20]), dict(list(state.items())[20:])]
    named = {f"pytorch_model-0000{i + 1}-of-00002.bin": shard for i, shard in enumerate(shards)}
    for name, shard in named.items():
        torch.save(shard, tmp_path / name)
    index = {"weight_map": {key: name for name, shard in named.items() for key in shard}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    ours = fill("vit_nano_patch8", tmp_path, {})
    assert all(torch.equal(tensor, state[key]) for key, tensor in ours.state_dict().items())
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(WeightsError, match=r"pytorch_model-00002-of-00002\.bin can't be read as a checkpoint"):
        read(tmp_path)


def test_what_trainers_leave_beside_the_tensors_is_read(tmp_path: Path, fill: Fill) -> None:
    state = nano().state_dict()
    beside = {"args": argparse.Namespace(lr=0.1), "best": np.float64(81.2), "seen": np.arange(3), "epoch": 3}
    torch.save({"model": state, **beside}, tmp_path / "trained.pth")
    ours = fill("vit_nano_patch8", tmp_path / "trained.pth", {})
    assert all(torch.equal(tensor, state[key]) for key, tensor in ours.state_dict().items())


def test_detectrons_pickles_of_arrays_are_read(tmp_path: Path, fill: Fill) -> None:
    state = nano().state_dict()
    arrays = {f"backbone.net.{key}": tensor.numpy() for key, tensor in state.items()}
    content = {"model": arrays, "__author__": "someone", "iteration": np.int64(3)}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(content, protocol=2))
    ours = fill("vit_nano_patch8", tmp_path / "model.pkl", {})
    assert all(torch.equal(tensor, state[key]) for key, tensor in ours.state_dict().items())


def test_pickles_that_would_run_code_are_refused(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "weights.pth").write_bytes(pickle.dumps({"state_dict": Bomb()}, protocol=2))
    torch.save({"blocks.0.attn.qkv.weight": Bomb()}, tmp_path / "zipped.pth")
    (tmp_path / "arrays.pkl").write_bytes(pickle.dumps({"model": Bomb()}))
    (tmp_path / "object.pkl").write_bytes(pickle.dumps({"model": {"a": np.array([Bomb()], dtype=object)}}))
    for name in ("weights.pth", "zipped.pth", "arrays.pkl", "object.pkl"):
        with pytest.raises(WeightsError, match=r" is refused: it is damaged, or holds more than tensors"):
            read(tmp_path / name)
    (tmp_path / "list.pkl").write_bytes(pickle.dumps({"model": {"a": np.array([None], dtype=object)}}))
    with pytest.raises(WeightsError, match=r"list\.pkl can't be read as a checkpoint: an array of other things"):
        read(tmp_path / "list.pkl")
    np.savez(tmp_path / "object.npz", a=np.array([Bomb()], dtype=object))
    with pytest.raises(WeightsError, match=r"object\.npz can't be read as a checkpoint"):
        read(tmp_path / "object.npz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth", "weights.npz", "weights.pkl"])
@pytest.mark.parametrize("kept", [0, 1, 7, 100, 2000])
def test_damaged_files_are_refused(name: str, kept: int, tmp_path: Path) -> None:
    path = tmp_path / name
    state = nano().state_dict()
    if name.endswith("pth"):
        torch.save(state, path)
    elif name.endswith("npz"):
        np.savez(path, **{key: tensor.numpy() for key, tensor in state.items()})
    elif name.endswith("pkl"):
        path.write_bytes(pickle.dumps({key: tensor.numpy() for key, tensor in state.items()}))
    else:
        save_file(state, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=rf"{name} (can't be read as a checkpoint|is refused)"):
        read(path)


def test_weights_that_are_not_finite_are_refused() -> None:
    state = nano().state_dict()
    state["norm.bias"] = state["norm.bias"] * float("nan")
    with pytest.raises(WeightsError, match=r"not finite in norm\.bias \(1 tensors\)"):
        read(state)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/file.pth", "no such file or folder; give a path, 'hf/<repo>'"),
        ({"epoch": 3}, r"holds no tensors by name; found: \['epoch'\]"),
        ({"a.weight": torch.ones(1)}, "is of no family that is known here; known: .*its keys begin with"),
        ("hf/someone/nothing", "can't be fetched .*hf download someone/nothing"),
        ("timm/vit_tiny_patch16_224.none", "can't be fetched .*hf download timm/vit_tiny_patch16_224.none"),
        ("hf/not a/valid//name", "can't be fetched"),
    ],
)
def test_sources_that_lead_nowhere_say_so(source: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=message):
        read(source)


def test_two_backbones_in_one_checkpoint_are_not_guessed_between() -> None:
    state = nano().state_dict()
    both = {f"{name}.{key}": tensor for name in ("student", "teacher") for key, tensor in state.items()}
    with pytest.raises(WeightsError, match=r"several backbones, below 'student\.', 'teacher\.'"):
        read(both)


def test_folders_without_weights_and_bad_indices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"holds none of model\.safetensors"):
        read(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text("{")
    with pytest.raises(WeightsError, match="is not JSON"):
        read(tmp_path)
    index.write_text("[]")
    with pytest.raises(WeightsError, match="holds no JSON object"):
        read(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../../elsewhere.safetensors"}}))
    with pytest.raises(WeightsError, match="points outside its folder"):
        read(tmp_path)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_default_weights_belong_to_their_preset(name: str) -> None:
    assert published_for(BACKBONES.create(name, {"drop_path": 0.1, "in_channels": 4})) == PUBLISHED[name]


def test_presets_without_published_weights_say_so() -> None:
    with pytest.raises(UserError, match="no default weights are published for vit_nano_patch8; there are some for: "):
        read_weights("default", BACKBONES.create("vit_nano_patch8"))


def test_the_name_of_a_folder_may_look_like_a_path_of_the_hub(tmp_path: Path, fill: Fill) -> None:
    save_file(nano().state_dict(), tmp_path / "model.safetensors")
    assert fill("vit_nano_patch8", str(tmp_path), {}).load_report is not None
    assert load_weights(nano(), read(str(tmp_path))).family == "timm"
