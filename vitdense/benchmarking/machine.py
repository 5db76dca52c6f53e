"""Where and with what a benchmark ran: the machine, its load, the versions."""

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("vitdense", "torch", "torchvision", "timm", "transformers", "open_clip_torch", "triton", "numpy")
_ASKED = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.draw"


def describe_machine() -> dict[str, object]:
    """Processor, cores that this process may use, memory, and the GPU where there is one."""
    return {
        "processor": _processor(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


@dataclass(frozen=True)
class Load:
    """What changes while a benchmark runs: the load average of 1, 5 and 15 minutes, the GPU's clocks and heat."""

    average: tuple[float, float, float]
    nvidia_smi: dict[str, str] | None

    @classmethod
    def now(cls) -> "Load":
        """As it is at this moment."""
        return cls(os.getloadavg(), _nvidia_smi())


def versions() -> dict[str, str]:
    """Of Python and of the libraries that take part; an absent one is not named."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    match = re.search(r"^model name\s*: (.*)$", described.read_text(), re.MULTILINE) if described.exists() else None
    return match[1] if match else platform.processor() or platform.machine()


def _nvidia_smi() -> dict[str, str] | None:
    if not torch.cuda.is_available() or shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={_ASKED}", "--format=csv,noheader", f"--id={torch.cuda.current_device()}"]
    done = subprocess.run(command, capture_output=True, text=True)
    values = done.stdout.strip().split(", ")
    return dict(zip(_ASKED.split(","), values, strict=False)) if done.returncode == 0 else None
