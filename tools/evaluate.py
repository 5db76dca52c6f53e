"""Evaluate a checkpoint on its data set: python tools/evaluate.py CHECKPOINT [key=value ...] [--json]."""

import argparse
import sys
from collections.abc import Mapping
from functools import partial

from rich.console import Console
from rich.progress import track
from rich.table import Table

from vitdense import checkpoint, cli
from vitdense.engine import evaluate, launch
from vitdense.errors import UserError
from vitdense.loading import load_model
from vitdense.recipe import load_recipe


def main(arguments: list[str]) -> int:
    """Prints the metrics, and a table by class."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="such as runs/shapes_swin/best")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as inference.mode=sliding")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_intermixed_args(arguments)
    found = checkpoint.open_checkpoint(options.checkpoint)
    recipe = load_recipe(found.folder / checkpoint.RECIPE, options.overrides)
    samples = recipe.data.build("val")
    fabric = launch(recipe.engine)
    model = load_model(found).to(fabric.device)
    if model.classes != samples.classes:
        raise UserError(
            f"{found.folder} knows the classes {', '.join(model.classes)};"
            f" the data set has {', '.join(samples.classes)}"
        )
    console = Console(stderr=True, quiet=not fabric.is_global_zero)
    bar = partial(track, description="evaluate", console=console, transient=True)
    metrics, metric = evaluate(fabric, model, samples, recipe, track=bar)
    details = metric.details()
    if fabric.is_global_zero:
        if options.json:
            print(cli.to_json({**metrics, **details}))
        else:
            _print(metrics, details)
    return cli.DONE


def _print(metrics: dict[str, float], details: Mapping[str, list[object]]) -> None:
    console = Console()
    if details:
        table = Table(*details)
        for row in zip(*details.values(), strict=True):
            table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row))
        console.print(table)
    console.print("  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))


if __name__ == "__main__":
    sys.exit(cli.run(main))
