"""Commands are loaded from their files, since tools/ is no package, and run as `python tools/NAME.py` would."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from vitdense import cli

ROOT = Path(__file__).parents[2]


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def load_tool() -> Callable[[str], ModuleType]:
    """The module of a command."""
    return _load


@pytest.fixture
def run_tool() -> Callable[..., int]:
    """The exit code of a command with these arguments."""

    def run(name: str, *arguments: str | Path) -> int:
        return cli.run(_load(name).main, [str(argument) for argument in arguments])

    return run
