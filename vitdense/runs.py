"""Backbones out of checkpoints of our own runs, whatever head was trained on them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitdense import checkpoint
from vitdense.contracts import BackboneConfig
from vitdense.errors import WeightsError
from vitdense.weights import Weights
from vitdense.weights.opening import RECIPE, read_recipe
from vitdense.weights.reading import own_weights

ROLES = ("best", "last")
_BACKBONE, _ADAPTED = "backbone.", ("backbone.backbone.", "backbone.adapter.")


def find_run(source: object) -> checkpoint.Checkpoint | None:
    """The checkpoint that `runs/x/best`, `runs/x/last`, `runs/x` or `runs/x/step-100` leads to, every byte checked;
    None where a source of weights is something else, such as a file."""
    if not isinstance(source, str | Path):
        return None
    path = Path(source)
    run = path.parent if path.name in ROLES and not path.exists() else path
    if (path / checkpoint.MANIFEST).is_file() or any(run.glob(f"step-*/{checkpoint.MANIFEST}")):
        return checkpoint.open_checkpoint(path)
    return None


def read_run(found: checkpoint.Checkpoint, config: BackboneConfig) -> Weights:
    """The backbone's tensors under its own names: the moving average where the run kept one, as `load_model` takes it.

    How the run's recipe built a backbone of this name stands below what the user set.
    """
    averaged = (found.folder / checkpoint.AVERAGED).is_file()
    source = f"{found.folder}{' (EMA)' if averaged else ''}"
    state = found.weights(averaged=True)
    inside = [key for key in state if key.startswith(_BACKBONE)]
    if not inside:
        raise WeightsError(f"{source} has no backbone: its keys begin with {sorted(state)[:4]}")
    prefix = _ADAPTED[0] if all(key.startswith(_ADAPTED) for key in inside) else _BACKBONE
    own = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    left_out = tuple(key for key in state if not key.startswith(prefix))
    recipe: Mapping[str, Any] = read_recipe(found.folder / RECIPE)
    return own_weights(own, source, config, recipe, left_out)
