"""Toy rows, importable by name here and in the processes that memory is measured in."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
