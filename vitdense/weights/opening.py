"""Opening checkpoints: mappings, files, folders and hub repositories; never anything that could run code."""

import json
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vitdense.errors import UserError, WeightsError
from vitdense.weights.arrays import read_arrays
from vitdense.weights.contents import Checkpoint
from vitdense.weights.pickles import read_checkpoint, read_pickled_arrays

WHOLE = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
SHARDED = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SETTINGS = ("config.json", "preprocessor_config.json", "processor_config.json", "open_clip_config.json")
RECIPE = "recipe.yaml"
HUBS = ("hf/", "timm/")
# What trainers put the tensors into. Averaged weights and teachers come first: they are what is evaluated.
AVERAGED = ("state_dict_ema", "model_ema", "ema", "params_ema", "teacher", "target_encoder")
WRAPPERS = (*AVERAGED, "state_dict", "model", "model_state", "params", "student", "encoder", "module")

# What readers raise on damaged files; pickles whose bytes were flipped raise nearly anything.
_READERS = (SafetensorError, BadZipFile, struct.error, OSError, EOFError)
_PICKLES = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, SyntaxError, SystemError)
DAMAGED: tuple[type[Exception], ...] = (*_READERS, *_PICKLES, ArithmeticError, MemoryError)

Source = str | Path | Mapping[str, Any]


def open_checkpoint(source: Source, *, files: tuple[str, ...] = WHOLE) -> Checkpoint:
    """A mapping of tensors, a file, a folder that save_pretrained wrote, "hf/<repo>" or "timm/<model>.<tag>".

    Of several `files` in a folder the first is read."""
    if isinstance(source, Mapping):
        state, inside = unwrap(source, "the given mapping")
        return Checkpoint(state, f"a mapping{inside}")
    name = str(source)
    if name.startswith(HUBS):
        return _open_folder(_download(name, files), name, files)
    path = Path(source)
    if path.is_dir():
        return _open_folder(path, name, files)
    if path.is_file():
        state, inside = _read_file(path)
        return Checkpoint(state, f"{name}{inside}", **_settings(path.parent if path.name in WHOLE else None))
    raise UserError(
        f"weights {name!r}: no such file or folder; give a path, 'hf/<repo>', 'timm/<model>.<tag>', 'default', "
        "or leave it out for fresh weights"
    )


def unwrap(content: object, name: str) -> tuple[dict[str, Tensor], str]:
    """The tensors of a checkpoint from inside what trainers wrap them in, and which of several wrappers was taken."""
    taken = ""
    while isinstance(content, Mapping):
        inner = [key for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        taken += f" ({inner[0]})" if len(inner) > 1 else ""
        content = content[inner[0]]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        found = sorted(map(str, content))[:8] if isinstance(content, Mapping) else type(content).__name__
        raise WeightsError(f"{name} holds no tensors by name; found: {found}")
    return tensors, taken


def _read_file(path: Path) -> tuple[dict[str, Tensor], str]:
    """A .safetensors file, arrays, or a pickle of tensors and plain values only; and which part of it was taken."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path), ""
        if path.suffix == ".npz":
            return read_arrays(path), ""
        if path.suffix == ".pkl":
            return unwrap(read_pickled_arrays(path), str(path))
        content = read_checkpoint(path)
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{path} is refused: it is damaged, or holds more than tensors and plain values") from error
    except DAMAGED as error:
        if "TorchScript" in str(error):
            raise WeightsError(
                f"{path} is a TorchScript archive, which can run code, and is not opened; if you trust it, make a "
                f"file of its tensors: torch.save(torch.jit.load({path.name!r}).state_dict(), 'tensors.pt')"
            ) from error
        raise WeightsError(f"{path} can't be read as a checkpoint: {error}") from error
    return unwrap(content, str(path))


def _open_folder(folder: Path, name: str, files: tuple[str, ...]) -> Checkpoint:
    for file in files:
        if (folder / file).is_file():
            state, inside = _read_file(folder / file)
            return Checkpoint(state, f"{name}{inside}", **_settings(folder))
    for file in SHARDED:
        if (folder / file).is_file():
            shards = [_read_file(folder / shard)[0] for shard in _shards(folder / file)]
            return Checkpoint({key: shard[key] for shard in shards for key in shard}, name, **_settings(folder))
    raise WeightsError(f"{name} holds none of {', '.join(WHOLE + SHARDED)}")


def _shards(index: Path) -> list[str]:
    names = sorted(set(_read_json(index).get("weight_map", {}).values()))
    for name in names:
        if Path(name).name != name:
            raise WeightsError(f"{index} points outside its folder: {name!r}")
    return names


def _settings(folder: Path | None) -> dict[str, Mapping[str, Any]]:
    if folder is None:
        return {}
    found = {name: _read_json(folder / name) for name in SETTINGS if (folder / name).is_file()}
    # What open_clip says stands under names that transformers doesn't use.
    config = found.get("config.json", {}) | found.get("open_clip_config.json", {})
    # Processors of pictures and texts together hold the former's facts under a name.
    both = found.get("processor_config.json", {}).get("image_processor") or {}
    preprocessor = found.get("preprocessor_config.json", both)
    return {"config": config, "preprocessor": preprocessor, "recipe": read_recipe(folder / RECIPE)}


def read_recipe(path: Path) -> Mapping[str, Any]:
    """The backbone's part of a recipe, which lies in the checkpoints of our own runs."""
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} can't be read as a recipe: {error}") from error
    backbone = content.get("backbone") if isinstance(content, dict) else None
    return backbone if isinstance(backbone, dict) else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds no JSON object")
    return content


def _download(name: str, files: tuple[str, ...]) -> Path:
    """The local folder of "hf/<owner>/<repo>" or "timm/<model>.<tag>" (published as the repository of that name)."""
    # Imported here: only these sources need the hub's client.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    repo = name.removeprefix("hf/")

    def fetch(file: str) -> Path | None:
        try:
            return Path(hf_hub_download(repo, file))
        except EntryNotFoundError:
            return None

    try:
        for file in SETTINGS:
            fetch(file)
        for file in files + SHARDED:
            path = fetch(file)
            if path is not None:
                for shard in _shards(path) if file in SHARDED else []:
                    hf_hub_download(repo, shard)
                return path.parent
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(_unreachable(name, repo, str(error).splitlines()[0])) from error
    raise UserError(_unreachable(name, repo, f"none of {', '.join(WHOLE + SHARDED)} is there or cached"))


def _unreachable(name: str, repo: str, why: str) -> str:
    return (
        f"weights {name!r} can't be fetched ({why}); on a machine with network run `hf download {repo} "
        "--local-dir FOLDER` and give FOLDER, or the path of a checkpoint file"
    )
