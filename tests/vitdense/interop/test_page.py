"""docs/interop.md: every block runs, and prints what the comment behind its print says."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "interop.md"
BLOCKS = re.findall(r"^## ([^\n]+)$|^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
MODULES = sorted(path.stem for path in (ROOT / "vitdense" / "interop").glob("[a-z]*.py"))


def snippets() -> list[Any]:
    found: list[Any] = []
    heading = ""
    for title, code in BLOCKS:
        heading = title or heading
        if code:
            found.append(pytest.param(code, id=f"{heading} {len(found)}"))
    return found


@pytest.mark.usefixtures("detectron2")
@pytest.mark.parametrize("code", snippets())
def test_a_block_prints_what_it_says(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(smp.encoders.encoders)
    exec(compile(code, PAGE.name, "exec"), {"__name__": "page"})
    for name in set(smp.encoders.encoders) - before:
        if not name.startswith("vitdense-"):
            del smp.encoders.encoders[name]
    told = re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
    printed = [line for line in capsys.readouterr().out.splitlines() if line != "Loading weights from local directory"]
    assert printed == told
    assert told


def test_every_library_has_a_block() -> None:
    code = "".join(block for _, block in BLOCKS)
    assert [name for name in MODULES if name != "blueprint" and f"vitdense.interop.{name}" not in code] == []


def test_the_room_alone_imports_none_of_the_libraries() -> None:
    code = (
        "import sys, vitdense.interop, vitdense.interop.detectron2, vitdense.interop.blueprint\n"
        "heavy = ('torchvision', 'transformers', 'segmentation_models_pytorch', 'timm', 'huggingface_hub')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
