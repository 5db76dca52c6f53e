"""Two processes (gloo) put records of pictures together."""

import json
import os
import socket
from functools import partial
from multiprocessing.context import ForkServerContext
from pathlib import Path

import torch

from vitdense.contracts import Batch, Detections, Target
from vitdense.engine.launch import gather_from_processes, launch, sum_over_processes
from vitdense.metrics.coco import Coco
from vitdense.recipe import EngineConfig


def _metric(pictures: list[int]) -> Coco:
    metric = Coco(("cat", "dog"), kinds=("bbox", "segm"))
    for index in pictures:
        generator = torch.Generator().manual_seed(index)
        labels, masks = torch.tensor([0, 1, index % 2]), torch.rand(3, 9, 7, generator=generator) < 0.7
        corners = 5 * torch.rand(3, 2, generator=generator, dtype=torch.float64)
        boxes = torch.cat([corners, corners + 4], dim=1)
        scores = torch.tensor([0.5, 0.5, 0.25])
        found = Detections((boxes + 0.8 * torch.rand(3, 4, generator=generator)).float(), scores, labels, masks)
        target = Target(boxes=boxes, labels=labels.flip(0), masks=masks.flip(0))
        metric.update([found], Batch(ids=[str(index)], targets=[target]))
    return metric


def _count(rank: int, port: int, out: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        LOCAL_WORLD_SIZE="2",
        WORLD_SIZE="2",
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        GROUP_RANK="0",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_RUN_ID="test",
    )
    fabric = launch(EngineConfig(accelerator="cpu", precision="32-true"))
    nothing = gather_from_processes(fabric, torch.zeros(0, 3))
    metric = _metric([[4, 2, 0], [3, 1, 4, 5, 6]][rank])  # both saw picture 4
    metric.reduce(partial(sum_over_processes, fabric))
    metric.gather(partial(gather_from_processes, fabric))
    (out / f"{rank}.json").write_text(json.dumps([metric.compute(), list(nothing.shape)]))


def test_two_processes_evaluate_boxes_and_masks_as_one(processes: ForkServerContext, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [processes.Process(target=_count, args=(rank, port, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(180)
    assert [process.exitcode for process in ranks] == [0, 0]
    alone = _metric(list(range(7))).compute()
    assert 0 < alone["AP"] < 1
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [alone, [0, 3]]
