"""What all tests share: no hub, one thread for each process of tests, GPU tests skipped without one, real data."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

ROOT = Path(__file__).parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-docs", action="store_true", help="write the tables of docs/ that tests make")
    parser.addoption("--slow", action="store_true", help="run what takes minutes and gigabytes too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="takes minutes and gigabytes: --slow"))
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


@pytest.fixture(scope="session")
def publish_clip() -> Callable[[Path], Any]:
    """Writes a small CLIP with weights that carry a signal, as open_clip publishes it, and gives open_clip's own."""
    return _publish


def _publish(folder: Path) -> Any:
    import open_clip
    from safetensors.torch import save_file

    from vitdense.benchmarking.suite.maps import enliven

    vision = {"layers": 3, "width": 64, "head_width": 16, "patch_size": 8, "image_size": 40}
    described = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": {"width": 32, "heads": 2, "layers": 2}}
    theirs: Any = enliven(open_clip.CLIP(**described)).eval()
    theirs.logit_scale.data.fill_(3.0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": described, "preprocess_cfg": {}}))
    state = {key: each.contiguous() for key, each in theirs.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return theirs
