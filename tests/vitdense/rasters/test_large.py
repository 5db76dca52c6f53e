"""20,000 x 20,000 pixels in less than 4 GiB: pytest tests/vitdense/rasters/test_large.py --slow -s"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SIDE = 20_000
GIB = 2**30
CODE = """
import json, re, time
from pathlib import Path
import vitdense
from vitdense.contracts import HEADS
from vitdense.inference import InferenceConfig
from vitdense.model import Model
from vitdense.benchmarking.suite.maps import enliven
from vitdense.rasters.predicting import predict_raster

backbone = vitdense.create_backbone("vit_nano_patch8", patch_size=16, depth=1, embed_dim=32, num_heads=2)
head = HEADS.create("linear", {{"num_classes": 4}}).build(backbone.levels)
model = Model(backbone, head, inference=InferenceConfig(window=512, stride=448))
enliven(model)
begun = time.perf_counter()
done = predict_raster(model.eval(), Path({path!r}), Path({out!r}))
seconds = time.perf_counter() - begun
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
print(json.dumps({{"seconds": seconds, "peak": peak, "windows": done.windows, "result": str(done.result)}}))
"""


def make_raster(path: Path, side: int) -> None:
    """Soft waves and noise, (side, side, 3) bytes, written some rows at a time."""
    generator = np.random.default_rng(0)
    columns = np.arange(side, dtype=np.float32)
    for top in range(0, side, 500):
        mapped = np.lib.format.open_memmap(path, mode="r+" if top else "w+", dtype=np.uint8, shape=(side, side, 3))
        rows = np.arange(top, min(top + 500, side), dtype=np.float32)[:, None]
        for channel, length in enumerate((700, 1100, 2300)):
            waves = 110 + 80 * np.sin(rows / length) * np.cos(columns / (length + 300))
            mapped[top : top + 500, :, channel] = waves + generator.integers(0, 40, (1, side))
        mapped.flush()
        del mapped


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks of memory are read from Linux's /proc")
def test_20_000_pixels_a_side_take_less_than_4_gib(tmp_path: Path) -> None:
    make_raster(tmp_path / "scene.npy", SIDE)
    code = CODE.format(path=str(tmp_path / "scene.npy"), out=str(tmp_path / "out"))
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(ran.stdout.splitlines()[-1])
    speed = SIDE**2 / 1e6 / found["seconds"]
    print(
        f"\n{SIDE} x {SIDE}: {found['windows']} windows in {found['seconds']:.0f} s, {speed:.2f} megapixels/s, "
        f"peak {found['peak'] / GIB:.2f} GiB"
    )
    classes = np.load(found["result"], mmap_mode="r")
    assert classes.shape == (SIDE, SIDE)
    assert set(np.unique(classes[::97, ::97]).tolist()) <= {0, 1, 2, 3}
    assert found["peak"] < 4 * GIB
