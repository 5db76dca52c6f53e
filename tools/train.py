"""Train from a recipe: python tools/train.py RECIPE [key=value ...] [--dry-run] [--resume auto|PATH]."""

import argparse
import sys

from vitdense import cli
from vitdense.engine import fit, rehearse
from vitdense.recipe import load_recipe


def main(arguments: list[str]) -> int:
    """Exit code: 0 done, 75 stopped by a signal after saving."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", help="a YAML file such as tasks/shapes_swin.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as optim.lr=1e-4")
    parser.add_argument(
        "--dry-run", action="store_true", help="two steps, an evaluation, a save and a resume; forecast"
    )
    parser.add_argument("--resume", metavar="auto|PATH", help="go on from the newest whole checkpoint, or from PATH")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    options = parser.parse_intermixed_args(arguments)
    recipe = load_recipe(options.recipe, options.overrides)
    if options.dry_run:
        forecast = rehearse(recipe)
        print(cli.to_json(forecast) if options.json else _describe(forecast))
        return cli.DONE
    result = fit(recipe, resume=options.resume)
    if options.json:
        print(cli.to_json({"step": result.step, **result.metrics}))
    if result.stopped:
        print(f"stopped and saved at step {result.step}; --resume auto goes on from there", file=sys.stderr)
        return cli.STOPPED
    return cli.DONE


def _describe(forecast: dict[str, float]) -> str:
    hours, minutes = divmod(forecast["seconds"] / 60, 60)
    return (
        f"dry run passed: {forecast['seconds_per_step']:.2f} s a step,"
        f" {forecast['seconds_per_evaluation']:.1f} s an evaluation;"
        f" the whole run about {hours:.0f} h {minutes:.0f} min,"
        f" peak memory {forecast['peak_bytes'] / 2**30:.1f} GiB,"
        f" {forecast['checkpoint_bytes'] / 2**20:.0f} MiB a checkpoint"
    )


if __name__ == "__main__":
    sys.exit(cli.run(main))
