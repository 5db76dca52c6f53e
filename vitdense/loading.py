"""Trained models, from checkpoints of runs and as others publish them."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from vitdense import checkpoint
from vitdense.build import build_model, copy_state
from vitdense.data.captions.views import PictureDataConfig
from vitdense.errors import CheckpointError
from vitdense.model import Model
from vitdense.published import build_published
from vitdense.recipe import load_recipe


def load_model(
    path: str | Path | checkpoint.Checkpoint, overrides: Sequence[str] = (), *, averaged: bool = True
) -> Model:
    """A trained model in eval mode, from its checkpoint folder (`runs/x/best`) or as others publish it.

    Published are folders that transformers' save_pretrained wrote (UperNet, DPT, DETR and its kin, Mask2Former, EoMT,
    CLIP and SigLIP), "hf/<repo>", and files under the names of mmseg's UperNet and of the authors of DPT, the DETRs,
    Mask2Former, EoMT and CLIP; of open_clip folders, files, "open_clip/<model>/<tag>", and with fresh weights
    "open_clip/<model>". `overrides` change the recipe of a checkpoint, such as "inference.mode=sliding", whose EMA
    weights are taken where the run kept them; a published model has `inference`, and a file of open_clip's that doesn't
    say all of itself "architecture=<model>".
    """
    if isinstance(path, str | Path):
        folder = Path(path)
        if not (folder / checkpoint.MANIFEST).exists() and _is_published(path):
            return build_published(path, overrides)
        if folder.is_dir() and not any(folder.glob(f"**/{checkpoint.MANIFEST}")):
            raise CheckpointError(
                f"no model in {path}: it has neither checkpoints of a run (step-N with a {checkpoint.MANIFEST}) nor a "
                "config.json beside weights, as transformers' save_pretrained writes it"
            )
    found = path if isinstance(path, checkpoint.Checkpoint) else checkpoint.open_checkpoint(path)
    recipe = load_recipe(found.folder / checkpoint.RECIPE, overrides)
    palette = [(int(r), int(g), int(b)) for r, g, b in found.facts["palette"]]
    numbers = found.facts.get("category_ids", [])
    model = build_model(recipe, found.facts["classes"], palette, numbers, load_weights=False)
    load_state(model, found, averaged=averaged)
    if isinstance(recipe.data, PictureDataConfig):
        model.preprocess = recipe.data.views().preprocess
    return model.eval()


def _is_published(path: str | Path) -> bool:
    """Whether a path leads to a published model: a library's name, a file, a folder of transformers or open_clip."""
    if str(path).startswith(("hf/", "open_clip/")) or Path(path).is_file():
        return True
    return any((Path(path) / name).is_file() for name in ("config.json", "open_clip_config.json"))


def load_state(model: nn.Module, found: checkpoint.Checkpoint, *, averaged: bool) -> None:
    """Copy a checkpoint's tensors into a model, strictly; CheckpointError names the keys that don't fit."""
    faults = copy_state(found.weights(averaged=averaged), model)
    if faults:
        raise CheckpointError(f"{found.folder} doesn't fit this model: {faults}")
