"""What a run saves and goes on from: the checkpoint to resume, and the state beside the weights."""

from typing import Any

from lightning.fabric import Fabric

from vitdense import checkpoint
from vitdense.errors import UserError
from vitdense.recipe import Recipe


def find_checkpoint(fabric: Fabric, recipe: Recipe, resume: str | None) -> checkpoint.Checkpoint | None:
    """The checkpoint to go on from; a run folder that already holds one is never overwritten."""
    run_dir = recipe.run_dir
    if resume is None:
        if any(run_dir.glob("step-*/" + checkpoint.MANIFEST)):
            raise UserError(
                f"{run_dir} already holds a run: --resume auto goes on with it,"
                " engine.run_dir=FOLDER writes elsewhere, or remove it"
            )
        return None
    if resume != "auto":
        return checkpoint.open_checkpoint(resume)
    if fabric.is_global_zero:
        checkpoint.sweep(run_dir)
    fabric.barrier()
    return checkpoint.open_last(run_dir, warn=fabric.print)


def sampler_state(recipe: Recipe, step: int, length: int) -> dict[str, int]:
    """Where the stream of samples stands: computed from the step alone, written down for whoever reads it."""
    consumed = step * recipe.data.batch_size
    return {
        "seed": recipe.engine.seed,
        "batch_size": recipe.data.batch_size,
        "consumed": consumed,
        "epoch": consumed // length,
    }


def check_sampler(found: checkpoint.Checkpoint, state: dict[str, Any], recipe: Recipe) -> None:
    """Raise where a resumed run would see other samples than the run that wrote the checkpoint."""
    seed, batch_size = state["sampler"]["seed"], state["sampler"]["batch_size"]
    given = (recipe.engine.seed, recipe.data.batch_size)
    if (seed, batch_size) != given:
        raise UserError(
            f"{found.folder} was made with engine.seed {seed} and data.batch_size {batch_size};"
            f" given {given[0]} and {given[1]}: a resumed run would see other samples"
        )
