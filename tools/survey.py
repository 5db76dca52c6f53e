"""What works for which backbone, measured: python tools/survey.py [PATTERN] [--json].

Without a pattern, all are surveyed and the tables of docs/backbones.md are written anew.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from vitdense import cli
from vitdense.surveying import put_into, survey, table

PAGE = Path(__file__).parents[1] / "docs" / "backbones.md"


def main(arguments: list[str]) -> int:
    """Exit code: 0, whatever the survey finds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", nargs="?", default="*", help="names to survey, such as 'hf/*' or 'swin*'")
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON object")
    options = parser.parse_args(arguments)
    rows = []
    screen = Console(stderr=True)
    with screen.status("building the first") as status:
        for row in survey(options.pattern):
            rows.append(row)
            status.update(f"{len(rows)} surveyed, the last {row.name}")
    tables = table(rows)
    if options.pattern == "*":
        PAGE.write_text(put_into(PAGE.read_text(encoding="utf-8"), tables), encoding="utf-8")
    print(cli.to_json({"rows": [asdict(row) for row in rows]}) if options.json else tables)
    return cli.DONE


if __name__ == "__main__":
    sys.exit(cli.run(main))
