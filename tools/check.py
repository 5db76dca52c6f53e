"""Audit a recipe's data completely: python tools/check.py RECIPE [key=value ...] [--json]."""

import argparse
import sys

from rich.console import Console

from vitdense import cli
from vitdense.contracts import Split
from vitdense.data.audit import survey, tables
from vitdense.recipe import load_recipe

SPLITS: tuple[Split, ...] = ("train", "val")


def main(arguments: list[str]) -> int:
    """Exit code: 0 for clean data, 2 where there are faults, which are listed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", help="a YAML file such as tasks/shapes_swin.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.root=/data/ade")
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON object")
    options = parser.parse_intermixed_args(arguments)
    data = load_recipe(options.recipe, options.overrides).data
    screen = Console(stderr=True)
    with screen.status("reading") as status:
        audits = [(split, survey(data.build(split), lambda text: status.update(f"reading {text}"))) for split in SPLITS]
    if options.json:
        print(cli.to_json({split: audit.to_json() for split, audit in audits}))
    else:
        for table in tables(audits):
            Console().print(table)
    faults = [f"{split}: {fault}" for split, audit in audits for fault in audit.faults]
    for fault in faults:
        print(fault, file=sys.stderr)
    return cli.MISTAKE if faults else cli.DONE


if __name__ == "__main__":
    sys.exit(cli.run(main))
