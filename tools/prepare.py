"""Download a data set with resume and checks: python tools/prepare.py DATASET ROOT [--url URL] [--sha256 SUM]."""

import argparse
import sys
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from vitdense import cli
from vitdense.data.prepare import SOURCES, prepare


def main(arguments: list[str]) -> int:
    """Exit code: 0 when the data set is ready to be used; run again after an interruption to go on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", help=f"one of: {', '.join(sorted(SOURCES))}")
    parser.add_argument("root", type=Path, help="the folder to download to and unpack in")
    parser.add_argument("--url", help="a mirror of the official archive")
    parser.add_argument("--sha256", help="refuse an archive with another checksum")
    options = parser.parse_args(arguments)
    with Progress(BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("download", total=None, start=False)

        def advance(done: int, total: int | None) -> None:
            bar.start_task(task)
            bar.update(task, completed=done, total=total)

        prepare(
            options.dataset,
            options.root,
            url=options.url,
            sha256=options.sha256,
            progress=advance,
            say=lambda text: bar.console.print(text, soft_wrap=True, highlight=False),
        )
    return cli.DONE


if __name__ == "__main__":
    sys.exit(cli.run(main))
