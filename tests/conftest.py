"""What all tests share: no hub, two threads, GPU tests skipped without one, the folder of real data."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

ROOT = Path(__file__).parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-docs", action="store_true", help="write the tables of docs/ that tests make")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder of real data is absent")
    return folder


@pytest.fixture(scope="session")
def write_docs(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--write-docs"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
