"""Ours and the peers side by side, as ratios: python tools/benchmark.py [ROW ...] [--device cpu|cuda] [--json FILE]."""

import argparse
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vitdense import cli
from vitdense.benchmarking import ROUNDS, ROWS, Report, list_rows, make_plan, measure

ASKED = ("device", "precision", "batch", "threads", "clock", "rounds", "peers")
COLUMNS = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))


def main(arguments: list[str]) -> int:
    """Exit code: 1 where ours computes something else than a peer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="names that --list shows, or package.module:NAME")
    parser.add_argument("--list", action="store_true", help="list the rows with their peers and goals")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: bf16 on cuda, fp32 on a CPU")
    parser.add_argument("--batch", type=int, metavar="N", help="pictures a step; default: the row's own")
    parser.add_argument("--threads", type=int, metavar="N", help="default: 1 on a CPU")
    parser.add_argument("--clock", choices=("cpu", "wall"), help="default: cpu on one thread, else wall")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help=f"default: {ROUNDS}")
    parser.add_argument("--peers", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="JSON to FILE, or in place of tables")
    options = parser.parse_intermixed_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    if options.list:
        console.print(list_rows())
        return cli.DONE
    plan = make_plan(options.rows or list(ROWS), **{name: getattr(options, name) for name in ASKED})
    report = Report(plan, None if options.json == "-" else options.json)
    screen = Console(stderr=True)
    with Progress(*COLUMNS, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("", total=plan.count_pieces())
        for name in plan.rows:
            report.add(measure(name, plan, lambda text: bar.update(task, advance=1, description=text)))
    if options.json == "-":
        print(cli.to_json(report.to_json()))
    else:
        report.show(console)
    return cli.DONE if report.agrees else cli.FAILED


if __name__ == "__main__":
    sys.exit(cli.run(main))
