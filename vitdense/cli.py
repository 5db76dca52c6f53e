"""How every command ends: one clear message instead of a traceback, an exit code that says whose turn it is, JSON."""

import json
import math
import sys
from collections.abc import Callable, Mapping

from vitdense.errors import TrainingError, UserError

DONE, FAILED, MISTAKE, STOPPED = 0, 1, 2, 75
"""Exit codes: done, anything else, a user's mistake, stopped by a signal after saving (resume continues)."""


def run(main: Callable[[list[str]], int], arguments: list[str] | None = None) -> int:
    """The exit code of `main`; a UserError is printed to stderr as one message."""
    try:
        return main(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return STOPPED


def to_json(values: Mapping[str, object]) -> str:
    """One JSON object; NaN, as of a class that is absent, becomes null, since JSON knows no NaN."""
    return json.dumps(_without_nan(values))


def _without_nan(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
