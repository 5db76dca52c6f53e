"""Score predictions in files: python tools/score.py miou|depth|boxes|masks|panoptic|objects TRUTH PREDICTIONS [...]."""

import argparse
import sys

from vitdense import cli
from vitdense.scoring.arguments import add_depth, add_miou, add_objects, add_panoptic, add_things
from vitdense.scoring.commands import COMMANDS


def main(arguments: list[str]) -> int:
    """Prints a table by class where there are classes and the summary, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (add_miou, add_depth, add_things, add_panoptic, add_objects):
        add(commands)
    options = parser.parse_args(arguments)
    COMMANDS[options.command](options)
    return cli.DONE


if __name__ == "__main__":
    sys.exit(cli.run(main))
