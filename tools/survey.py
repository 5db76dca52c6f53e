"""Makes and measures one backbone of each family, for docs/backbones.md: python tools/survey.py [PATTERN] [--json]."""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from vitdense import cli
from vitdense.errors import UserError
from vitdense.surveying import as_page, as_records, examine, named

PAGE = Path(__file__).parents[1] / "docs" / "backbones.md"


def main(arguments: list[str]) -> int:
    """Exit code 0; with a pattern the table is printed, without one it is written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pattern", nargs="?", default="*", help='such as "timm/*" or "hf/swin*"')
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON object")
    options = parser.parse_args(arguments)
    names = list(named(options.pattern))
    if not names:
        raise UserError(f"nothing that is surveyed matches {options.pattern!r}; all: python tools/survey.py")
    screen = Console(stderr=True)
    # Processes of one thread each: the networks are small.
    with ProcessPoolExecutor(mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        findings = list(track(pool.map(examine, names), "measuring", total=len(names), console=screen))
    if options.json:
        print(cli.to_json(as_records(findings)))
    elif options.pattern == "*":
        PAGE.write_text(as_page(findings), encoding="utf-8")
        print(f"{PAGE.name}: {len(findings)} names")
    else:
        print(as_page(findings))
    return cli.DONE


if __name__ == "__main__":
    sys.exit(cli.run(main))
