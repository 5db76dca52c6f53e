"""Tables of the `datasets` package, by a stand-in with its face; without the package, the extra is named."""

import sys
import types
from pathlib import Path

import pytest

from vitdense.errors import DataError, UserError

from .conftest import build, jpeg


class Table(list[dict[str, object]]):
    """What is used of datasets.Dataset."""

    @property
    def column_names(self) -> list[str]:
        return list(self[0])

    def cast_column(self, name: str, kind: object) -> "Table":
        assert name == "image"
        assert kind == {"decode": False}
        return self


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> dict[str, Table]:
    tables: dict[str, Table] = {}
    module = types.ModuleType("datasets")

    def load(name: str, subset: str | None, *, split: str) -> Table:
        if split not in tables:
            raise ValueError(f"Unknown split {split!r}")
        return tables[split]

    module.load_dataset = load  # type: ignore[attr-defined]
    module.load_from_disk = lambda root: tables  # type: ignore[attr-defined]
    module.Image = lambda **options: options  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return tables


def test_rows_become_samples(package: dict[str, Table], tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(jpeg(3))
    package["train"] = Table(
        [
            {"image": {"bytes": jpeg(1), "path": None}, "caption": ["a cat", "the cat"]},
            {"image": {"bytes": None, "path": str(tmp_path / "x.jpg")}, "caption": "a dog"},
            {"image": {"bytes": jpeg(1), "path": None}, "caption": ""},
            {"image": None, "caption": "a bird"},
        ]
    )
    for root in ("someone/pairs", str(tmp_path)):
        samples = build("hf_captions", "val", root=root, val="train")
        assert [samples[0, index]["captions"] for index in range(2)] == [["a cat", "the cat"], ["a dog"]]
        assert samples[0, 1]["image"].shape == (3, 16, 16)
        faults = samples.audit()
        assert [fault.split("[")[1] for fault in faults] == ["2]: caption is empty", "3]: image is missing"]


def test_a_missing_split_is_told(package: dict[str, Table]) -> None:
    with pytest.raises(DataError, match="someone/pairs: split 'train': Unknown split"):
        build("hf_captions", root="someone/pairs")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'vitdense\[datasets\]'"):
        build("hf_captions", root="someone/pairs")
