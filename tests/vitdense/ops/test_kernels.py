"""When kernels run; their own tests (folder kernels/) in Triton's interpreter, which needs a process of its own."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from vitdense.ops import kernels

HERE = Path(__file__).parent
TRITON = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


@TRITON
def test_kernels_equal_torch_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", str(HERE / "kernels")]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE.parents[2])
    assert done.returncode == 0, done.stdout + done.stderr


@TRITON
def test_kernels_compile_for_gpus(tmp_path: Path) -> None:
    """Down to machine code, which needs no GPU."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    command = [sys.executable, str(HERE / "kernels" / "compilation.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_kernels_import_triton_and_nobody_imports_kernels_before_they_run() -> None:
    for path in [*HERE.parents[2].glob("vitdense/**/*.py"), *HERE.parents[2].glob("heads/**/*.py")]:
        if not path.stem.endswith("_triton"):
            lines = path.read_text(encoding="utf-8").splitlines()
            assert not [line for line in lines if re.match(r"\s*(import|from) triton|(import|from) \S*_triton\b", line)]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with everything that kernels need."""
    monkeypatch.setenv(kernels.SWITCH, "1")
    monkeypatch.setattr(kernels, "can_compile", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_lies_on_a_gpu_is_for_kernels(dtype: torch.dtype) -> None:
    assert kernels.has_kernels(torch.device("cuda"), dtype)
    assert not kernels.has_kernels(torch.device("cpu"), dtype)


@pytest.mark.usefixtures("gpu")
def test_double_precision_old_gpus_and_machines_without_triton_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    assert not kernels.has_kernels(cuda, torch.float64)
    with monkeypatch.context() as older:
        older.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        assert not kernels.has_kernels(cuda, torch.float32)
    monkeypatch.setattr(kernels, "can_compile", lambda: False)
    assert not kernels.has_kernels(cuda, torch.float32)


@pytest.mark.usefixtures("gpu")
def test_kernels_run_only_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kernels.SWITCH)
    assert not kernels.has_kernels(torch.device("cuda"), torch.float32)


@pytest.mark.usefixtures("gpu")
def test_a_tensor_on_a_cpu_is_not() -> None:
    assert not kernels.runs_as_kernel(torch.zeros(1))


@pytest.mark.parametrize("missing", ["triton", "compiler"])
def test_triton_needs_a_compiler(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(kernels, "find_spec", lambda name: None if missing == "triton" else object())
    monkeypatch.setattr("shutil.which", lambda name: None if missing == "compiler" else f"/bin/{name}")
    assert not kernels.can_compile.__wrapped__()
    monkeypatch.setattr(kernels, "find_spec", lambda name: object())
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    assert kernels.can_compile.__wrapped__()
