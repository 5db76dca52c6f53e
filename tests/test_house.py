"""What holds for the whole house: small files, light imports, one README command that CI runs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for room in ("vitdense", "heads", "tools") for path in (ROOT / room).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
VAGUE = {"utils", "misc", "helpers", "common", "base"}


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_is_short_and_says_what_it_holds(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= (60 if path.parent == ROOT / "tools" else 300)
    assert ast.get_docstring(ast.parse(text))
    assert path.stem not in VAGUE


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_functions_are_short(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 50, f"{node.name} has too many lines"


@pytest.mark.parametrize("room", ["tasks", "configs", "tools", "tests"])
def test_folders_that_are_no_packages_stay_so(room: str) -> None:
    assert not list((ROOT / room).rglob("__init__.py"))


@pytest.mark.parametrize("room", ["tasks", "configs"])
def test_recipes_are_yaml_only(room: str) -> None:
    assert {path.suffix for path in (ROOT / room).rglob("*") if path.is_file()} == {".yaml"}


def test_importing_and_creating_a_backbone_stays_light() -> None:
    """Foreign code that takes a backbone must not pay for training, augmentation or evaluation."""
    code = (
        "import sys, vitdense\n"
        "vitdense.create_backbone('swin_nano'); vitdense.create_backbone('vit_nano_patch8', adapter='simple_pyramid')\n"
        "heavy = ('lightning', 'albumentations', 'pycocotools', 'timm', 'transformers', 'torchvision', 'cv2')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_ci_runs_the_readmes_test_command() -> None:
    commands = re.findall(r"^(pip install uv && .*|uv run .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    tests = next(command for command in commands if "pytest" in command)
    assert tests in (ROOT / ".ci" / "run").read_text()


def test_tested_versions_lie_within_the_ranges() -> None:
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    for text in [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]:
        requirement = Requirement(text)
        assert pinned[requirement.name.lower()] in requirement.specifier, text
