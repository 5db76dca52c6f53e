"""`webdataset`: pictures and captions in tar shards, each once an epoch or drawn with replacement, both resumable."""

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import PositiveInt, model_validator

from vitdense.contracts import DATA, Split
from vitdense.data.audit import THREADS
from vitdense.data.boxes.records import Fault
from vitdense.data.captions.audit import CaptionAudit
from vitdense.data.captions.rows import text_fault
from vitdense.data.captions.samples import CaptionSamples, Entry
from vitdense.data.captions.shards import Shard, expand, open_shard
from vitdense.data.captions.views import Picture, PictureDataConfig
from vitdense.errors import DataError

BLOCK = 4096
"""So many samples in a row come from the same `mix` shards where they are drawn with replacement."""
OPEN = 64
"""So many indices of shards a process keeps where it opens them on demand."""
FEW = 4
"""So many draws are looked at before a run, for each may fetch a shard."""


@DATA.register("webdataset")
class WebdatasetConfig(PictureDataConfig):
    """`train` and `val` are patterns of shards below `root`, or addresses, which are kept in `cache`.

    Every sample comes once an epoch; with `resampled` an epoch is `train_size` draws with replacement, from shards
    that are opened (and fetched) when they are drawn. `mix` shards are read from at a time, all where it is null.
    `caption_key` is the field of a sample's JSON where it has no text.
    """

    train: str | tuple[str, ...] | None = None
    val: str | tuple[str, ...] | None = None
    caption_key: str = "caption"
    cache: str | None = None
    resampled: bool = False
    train_size: PositiveInt | None = None
    mix: PositiveInt | None = None

    @model_validator(mode="after")
    def _sized(self) -> Self:
        if self.resampled != (self.train_size is not None):
            raise ValueError("resampled and train_size go together: an epoch of draws has a size, one of files its own")
        return self

    def build(self, split: Split) -> "ShardSamples | DrawnSamples":
        """The samples of a split; raises DataError where a shard is missing or holds no pair."""
        patterns = self.train if split == "train" else self.val
        if patterns is None:
            raise DataError(f"data 'webdataset' needs data.{split}=PATTERN, such as shards/{{0000..0012}}.tar")
        places = expand(patterns, Path(self.root or "."))
        if self.resampled and split == "train":
            return DrawnSamples(self, places)
        return ShardSamples(self, split, places)

    def open(self, place: str) -> Shard:
        """The index of a shard."""
        return open_shard(place, None if self.cache is None else Path(self.cache), self.caption_key)


class ShardSamples(CaptionSamples):
    """Every sample of every shard; a shard without any stops where bad samples do, and is a fault where they don't."""

    headers = 0

    def __init__(self, config: WebdatasetConfig, split: Split, places: Sequence[str]) -> None:
        super().__init__(config, split)
        self.mix, self.caption_key = config.mix, config.caption_key
        self.shards: list[Shard] = []
        with ThreadPoolExecutor(THREADS) as pool:
            for found in pool.map(lambda place: _opened(config, place), places):
                if isinstance(found, Fault):
                    self.faults.append(found)
                    continue
                self.shards.append(found)
                self.filtered += found.filtered
                if found.damage is not None:
                    self.faults.append(Fault("damaged shards", f"{found.name}: {found.damage}"))
        if not self.shards:
            raise DataError("; ".join(fault.text for fault in self.faults[:3]))
        self.ends = np.cumsum([len(shard) for shard in self.shards])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def entry(self, epoch: int, index: int) -> Entry:
        """The sample at `index`, counted through the shards."""
        number = int(np.searchsorted(self.ends, index, side="right"))
        shard = self.shards[number]
        return read_entry(shard, index - int(self.ends[number]) + len(shard), self.caption_key)

    def order(self, seed: int, epoch: int) -> Sequence[int] | None:
        """Shards in a new order, `mix` of them at a time, whose samples are shuffled together."""
        if self.mix is None or self.mix >= len(self.shards):
            return None
        generator = np.random.default_rng([seed, epoch])
        shards = generator.permutation(len(self.shards))
        order: list[int] = []
        for first in range(0, len(shards), self.mix):
            chosen = [
                np.arange(self.ends[number] - len(self.shards[number]), self.ends[number])
                for number in shards[first : first + self.mix]
            ]
            order += generator.permutation(np.concatenate(chosen)).tolist()
        return order


class DrawnSamples(CaptionSamples):
    """Samples drawn with replacement by (seed, epoch, index): a shard, each as likely, then one of its samples."""

    headers = 0

    def __init__(self, config: WebdatasetConfig, places: Sequence[str]) -> None:
        super().__init__(config, "train")
        self.config, self.places = config, tuple(places)
        self._shards: OrderedDict[str, Shard] = OrderedDict()

    def __len__(self) -> int:
        assert self.config.train_size is not None
        return self.config.train_size

    def entry(self, epoch: int, index: int) -> Entry:
        """The sample that is drawn for (epoch, index)."""
        places: Sequence[str] = self.places
        if self.config.mix is not None:
            block = np.random.default_rng([self.seed, 1, epoch, index // BLOCK])
            places = [self.places[int(number)] for number in block.integers(len(self.places), size=self.config.mix)]
        generator = np.random.default_rng([self.seed, 2, epoch, index])
        shard = self._shard(places[int(generator.integers(len(places)))])
        return read_entry(shard, int(generator.integers(len(shard))), self.config.caption_key)

    def order(self, seed: int, epoch: int) -> Sequence[int] | None:
        """Draws need no shuffling, and those of the same shards stand together."""
        return range(len(self))

    def audit(self, *, limit: int | None = None, report: Callable[[str], None] | None = None) -> list[str]:
        """A few draws; with no limit all shards, completely."""
        if limit is None:
            return self.survey(report).faults
        return super().audit(limit=min(limit, FEW), report=report)

    def survey(self, report: Callable[[str], None] | None = None) -> CaptionAudit:
        """All samples of all shards."""
        return ShardSamples(self.config, "train", self.places).survey(report)

    def _shard(self, place: str) -> Shard:
        shard = self._shards.get(place) or self.config.open(place)
        if shard.damage is not None and self.config.on_bad_sample == "stop":
            raise DataError(f"{shard.name}: {shard.damage}")
        self._shards[place] = shard
        self._shards.move_to_end(place)
        if len(self._shards) > OPEN:
            self._shards.popitem(last=False)
        return shard


def _opened(config: WebdatasetConfig, place: str) -> Shard | Fault:
    try:
        return config.open(place)
    except DataError as fault:
        if config.on_bad_sample == "stop":
            raise
        return Fault("shards that can't be used", str(fault))


def read_entry(shard: Shard, index: int, caption_key: str) -> Entry:
    """A sample of a shard; raises DataError that names shard and key where its caption can't be used."""
    content, said = shard.read(index)
    where = f"{shard.name}: {shard.keys[index]}"
    captions: object = said.decode("utf-8", errors="surrogateescape").removeprefix("\ufeff")
    if shard.in_json[index]:
        try:
            found = json.loads(str(captions))
        except (ValueError, RecursionError) as fault:
            raise DataError(f"{where}.json: no JSON: {fault}") from None
        captions = found.get(caption_key) if isinstance(found, dict) else None
    each: list[Any] = captions if isinstance(captions, list) else [captions]
    for caption in each or [None]:
        wrong = text_fault(caption)
        if wrong is not None:
            raise DataError(f"{where}: the caption {wrong}")
    return Entry(
        f"{Path(shard.name).name}/{shard.keys[index]}", Picture(where, content), tuple(s.strip() for s in each)
    )
