"""A dry run: two steps, two evaluation batches, a save and a resume, then what the whole run would take."""

import tempfile
from pathlib import Path

from vitdense.engine.training import FitResult, fit
from vitdense.errors import TrainingError
from vitdense.recipe import Recipe

STEPS, EVAL_BATCHES = 2, 2


def rehearse(recipe: Recipe) -> dict[str, float]:
    """Walk the whole path in a folder aside; seconds and bytes that the run is expected to take."""
    recipe.run_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=recipe.run_dir.parent, prefix=".dry-run-") as folder:
        aside = recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"run_dir": folder})})
        first = fit(aside, stop_after=STEPS, eval_batches=EVAL_BATCHES)
        size = sum(path.stat().st_size for path in Path(folder, f"step-{STEPS}").iterdir())
        second = fit(aside, resume="auto", stop_after=STEPS + 1, eval_batches=EVAL_BATCHES)
        if second.step != STEPS + 1:
            raise TrainingError(f"the resumed dry run ended at step {second.step}, expected {STEPS + 1}")
        return _forecast(recipe, first, second, size)


def _forecast(recipe: Recipe, first: FitResult, second: FitResult, checkpoint_bytes: int) -> dict[str, float]:
    """The faster of the steps seen stands for all; evaluation is scaled from two batches to the split."""
    steps = recipe.schedule.steps
    step = min(first.seconds["step"], second.seconds["step"])
    batches = -(-len(recipe.data.build("val")) // recipe.data.eval_batch_size)
    evaluation = min(first.seconds["evaluation"], second.seconds["evaluation"]) / min(EVAL_BATCHES, batches) * batches
    evaluations = -(-steps // recipe.engine.eval_every)
    return {
        "seconds_per_step": step,
        "seconds_per_evaluation": evaluation,
        "seconds": steps * step + evaluations * evaluation,
        "peak_bytes": float(max(first.peak_bytes, second.peak_bytes)),
        "checkpoint_bytes": float(checkpoint_bytes),
    }
