"""A row of rasters: from a file to a class map in a file by windows, beside the plain loop over another's model."""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.benchmarking.rows import SEED, Conditions, Goal, Job, Outcome, Pair, Peer, Row
from vitdense.benchmarking.suite.maps import enliven
from vitdense.benchmarking.suite.swin import TINY, SwinSize
from vitdense.benchmarking.suite.upernet import Ours, Transformers, UperNetSize
from vitdense.data.rasters import RasterConfig, Source, open_raster
from vitdense.inference import InferenceConfig, window_starts
from vitdense.model import Model
from vitdense.rasters.plan import make_plan
from vitdense.rasters.predicting import Prediction, kind_of_rasters
from vitdense.rasters.writing import MappedArray, Record


@dataclass(frozen=True)
class Work:
    """A raster of `side` pixels a side, looked at in windows of the network's side, `stride` apart."""

    side: int
    stride: int
    network: UperNetSize

    @property
    def window(self) -> int:
        """Pixels a side."""
        return self.network.swin.side


FULL = Work(1280, 192, UperNetSize(SwinSize(256, 32, (2, 2, 2, 2), (1, 2, 4, 8)), 64, 19))
SMALL = Work(300, 150, UperNetSize(TINY, 24, 7))


def _work(conditions: Conditions) -> Work:
    return SMALL if conditions.tiny else FULL


class TiledJob(Job):
    """A raster in a file, and a folder for its class map."""

    def __init__(self, conditions: Conditions) -> None:
        self.conditions, self.work, self.together = conditions, _work(conditions), conditions.batch or 4
        self.folder = Path(tempfile.mkdtemp(prefix="vitdense-benchmark-"))
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        shape = (self.work.side, self.work.side, 3)
        np.save(self.folder / "scene.npy", np.random.default_rng(SEED).integers(0, 256, shape, dtype=np.uint8))

    def logits(self) -> Tensor:
        """(K, H, W), blended."""
        raise NotImplementedError

    def outcome(self) -> Outcome:
        """Logits at every pixel, and those of the classes in the file."""
        with torch.inference_mode(), self.conditions.autocast():
            logits = self.logits().float().cpu()
        self.step()
        chosen = torch.from_numpy(np.load(self.folder / "classes.npy").astype(np.int64))
        return {"logits": logits, "logits of the map": logits.gather(0, chosen[None])}


class OurTiles(TiledJob):
    """The walk, written in bands, with its record."""

    def __init__(self, network: nn.Module, conditions: Conditions) -> None:
        super().__init__(conditions)
        given: Any = network
        inference = InferenceConfig(window=self.work.window, stride=self.work.stride, window_batch=self.together)
        model: Any = Model(given.backbone, given.head, inference=inference).to(conditions.device).eval()
        config = RasterConfig()
        source = Source(open_raster(self.folder / "scene.npy", 3, config), config, model.backbone.mean)
        kind = kind_of_rasters(model)
        plan = make_plan(source.size, inference, kind.planes, 1024)
        called: Any = torch.compile(model) if conditions.compiled else model
        self.prediction = Prediction(called, source, plan, inference, kind)

    def step(self) -> None:
        """Into the file, from its first band on."""
        array = MappedArray(self.folder / "classes.npy")
        array.create(self.prediction.plan.size, self.prediction.kind.dtype)
        with torch.inference_mode(), self.conditions.autocast():
            self.prediction.write(array, Record(self.folder / "classes.json", {}))

    def logits(self) -> Tensor:
        """(K, H, W): bands put together."""
        found = torch.empty(self.work.network.classes, self.work.side, self.work.side)
        for band in self.prediction.walk().bands():
            assert band.maps is not None
            height, width = band.maps.shape[-2:]
            found[:, band.top : band.top + height, band.left : band.left + width] = band.maps[0]
        return found


class TheirTiles(TiledJob):
    """What one writes oneself: the picture and the logits of all of it in memory, windows in batches, their sum."""

    def __init__(self, network: nn.Module, conditions: Conditions) -> None:
        super().__init__(conditions)
        given: Any = network.to(conditions.device).eval()
        self.network = given
        self.call: Callable[[Tensor], Tensor] = torch.compile(given.logits) if conditions.compiled else given.logits
        place = (torch.arange(self.work.window, dtype=torch.float32) + 0.5) / self.work.window
        side = torch.exp(-0.5 * ((place - 0.5) / 0.125) ** 2)
        self.weights = torch.outer(side, side).clamp(min=1e-3).to(conditions.device)
        self.mean = torch.tensor([0.485, 0.456, 0.406], device=conditions.device).view(3, 1, 1)
        self.std = torch.tensor([0.229, 0.224, 0.225], device=conditions.device).view(3, 1, 1)

    def step(self) -> None:
        """Into the file at once."""
        with torch.inference_mode(), self.conditions.autocast():
            classes = self.logits().argmax(dim=0).to(torch.uint8)
        np.save(self.folder / "classes.npy", classes.cpu().numpy())

    def logits(self) -> Tensor:
        """(K, H, W)."""
        pixels = torch.from_numpy(np.load(self.folder / "scene.npy")).to(self.conditions.device)
        picture = (pixels.permute(2, 0, 1).float() / 255 - self.mean) / self.std
        side, window = self.work.side, self.work.window
        starts = window_starts(side, window, self.work.stride)
        places = [(top, left) for top in starts for left in starts]
        total = torch.zeros(self.work.network.classes, side, side, device=picture.device)
        covered = torch.zeros(side, side, device=picture.device)
        for first in range(0, len(places), self.together):
            some = places[first : first + self.together]
            crops = [picture[:, top : top + window, left : left + window] for top, left in some]
            maps = self.call(torch.stack(crops)).float()
            if maps.shape[-1] != window:
                maps = F.interpolate(maps, (window, window), mode="bilinear")
            for (top, left), each in zip(some, maps, strict=True):
                total[:, top : top + window, left : left + window] += each * self.weights
                covered[top : top + window, left : left + window] += self.weights
        return total / covered


def _ours(conditions: Conditions) -> OurTiles:
    return OurTiles(enliven(Ours(_work(conditions).network)), conditions)


def _theirs(conditions: Conditions) -> TheirTiles:
    return TheirTiles(enliven(Transformers(_work(conditions).network)), conditions)


def _pair(conditions: Conditions) -> Pair:
    theirs = _theirs(conditions)
    state = {name.removeprefix("network."): each for name, each in theirs.network.state_dict().items()}
    return Pair(OurTiles(Ours(_work(conditions).network, state), conditions), theirs)


ROWS = (
    Row(
        "tiled_inference",
        "1280 x 1280 x 3 bytes in a file to classes in a file, 49 windows of 256, UperNet on a small Swin, 19 classes",
        _ours,
        (Peer("transformers loop", "transformers", _theirs, _pair),),
        {"cpu": Goal(1.0, 0.5)},
        (
            "A step is 1.64 megapixels, and --batch counts windows. The plain loop keeps the picture and all logits in "
            "memory and writes once; ours keeps those of a row of windows, and writes each band with its record.",
        ),
    ),
)
