"""Contrastive losses over 1, 2 and 4 processes (gloo): the loss of one, and gradients whose mean is that of one."""

import socket
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from heads.contrastive.losses import distillation_loss
from vitdense.contracts import Outputs
from vitdense.ops.contrastive import clip_loss, siglip_loss
from vitdense.ops.gathering import gather_rows

PAIRS = 14
Found = dict[str, list[Tensor]]


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    context = get_context("forkserver")
    context.set_forkserver_preload(["vitdense.ops.contrastive", "heads.contrastive.losses", "torch.distributed"])
    return context


def _given() -> list[Tensor]:
    """Images, texts, scale, bias, and a teacher's images and texts."""
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randn(PAIRS, 6, generator=generator, dtype=torch.float64) for _ in range(4)]
    images, texts, *teacher = (F.normalize(each, dim=1) for each in rows)
    return [images, texts, torch.tensor(9.0).double(), torch.tensor(-3.0).double(), *teacher]


def _distilled(images: Tensor, texts: Tensor, scale: Tensor, _: Tensor, *teacher: Tensor) -> Tensor:
    own: Outputs = {"image_embeddings": images, "text_embeddings": texts, "logit_scale": scale}
    theirs: Outputs = dict(zip(own, (*teacher, torch.tensor(20.0).double()), strict=True))
    return distillation_loss(own, theirs)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "clip": lambda images, texts, scale, *_: clip_loss(images, texts, scale),
    "clip, same": lambda images, texts, scale, *rest: clip_loss(images, texts, scale, same=(images[:, 0] > 0).long()),
    "clip, locked images": lambda images, texts, scale, *_: clip_loss(images.detach(), texts, scale),
    "clip, locked texts": lambda images, texts, scale, *_: clip_loss(images, texts.detach(), scale),
    "siglip": lambda images, texts, scale, bias, *_: siglip_loss(images, texts, scale, bias),
    "siglip, locked images": lambda images, texts, *rest: siglip_loss(images.detach(), texts, *rest[:2]),
    "clip, twice differentiable": lambda images, texts, scale, *_: clip_loss(images, texts, scale),
    "siglip, twice differentiable": lambda images, texts, *rest: siglip_loss(images, texts, *rest[:2]),
    "distillation": _distilled,
}


def _learn(shares: list[int], rank: int) -> Found:
    """Of each loss the value, and the gradients of this process's rows, of scale and of bias."""
    first, found = sum(shares[:rank]), {}
    for name, loss in LOSSES.items():
        given = [each[first : first + shares[rank]] if each.ndim else each for each in _given()]
        leaves = [each.clone().requires_grad_() for each in given]
        value = loss(*leaves)
        gradients = torch.autograd.grad(value, leaves[:4], allow_unused=True, create_graph="twice" in name)
        found[name] = [value.detach()]
        for leaf, each in zip(leaves, gradients, strict=False):
            found[name].append(torch.zeros_like(leaf) if each is None else each.detach())
    return found


def _work(rank: int, port: int, shares: list[int], folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(shares))
    rows = torch.arange(shares[rank], dtype=torch.float32)[:, None] + 100 * rank
    torch.save((_learn(shares, rank), gather_rows(rows, shares)), folder / f"{rank}.pt")
    distributed.destroy_process_group()


def _run(server: ForkServerContext, shares: list[int], folder: Path) -> list[tuple[Found, Tensor]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [server.Process(target=_work, args=(rank, port, shares, folder)) for rank in range(len(shares))]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0] * len(shares)
    return [torch.load(folder / f"{rank}.pt") for rank in range(len(shares))]


@pytest.mark.parametrize("shares", [[7, 7], [4, 3, 2, 5]], ids=["two", "four of unequal shares"])
def test_processes_learn_what_one_does(server: ForkServerContext, shares: list[int], tmp_path: Path) -> None:
    alone = _learn([PAIRS], 0)
    answers = _run(server, shares, tmp_path)
    numbers = [100.0 * rank + row for rank, share in enumerate(shares) for row in range(share)]
    for name, (value, images, texts, scale, bias) in alone.items():
        parts = [found[name] for found, _ in answers]
        assert all(gathered.flatten().tolist() == numbers for _, gathered in answers)
        assert all(torch.allclose(part[0], value, rtol=1e-12, atol=1e-12) for part in parts), name
        mean = 1 / len(shares)
        for place, whole in ((1, images), (2, texts)):
            rows = mean * torch.cat([part[place] for part in parts])
            assert torch.allclose(rows, whole, rtol=1e-12, atol=1e-12), name
        for place, whole in ((3, scale), (4, bias)):
            shared = mean * torch.stack([part[place] for part in parts]).sum(dim=0)
            assert torch.allclose(shared, whole, rtol=1e-12, atol=1e-12), name
