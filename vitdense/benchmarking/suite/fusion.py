"""Rows of UperNet's fusion convolution: 3x3 over four joined levels of 512 channels, the finest of 128 x 128."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from vitdense.benchmarking.rows import SEED, Conditions, Goal, Job, Outcome, Pair, Peer, Row
from vitdense.ops.fusion import conv_of_resized

NOTES = ("The peer is what transformers and segmentation-models-pytorch do: resize, join, convolve.",)

Conv = Callable[[list[Tensor], Tensor], Tensor]


class FusionJob(Job):
    """Random maps; a training step is the mean square of the outcome and all gradients."""

    def __init__(self, conv: Conv, conditions: Conditions, *, train: bool) -> None:
        side, channels = (29, 40) if conditions.tiny else (128, 512)
        generator = torch.Generator().manual_seed(SEED)
        self.conditions, self.train = conditions, train
        self.maps = [
            torch.randn(conditions.batch or 1, channels, size, size, generator=generator).to(conditions.device)
            for size in (side, -(-side // 2), -(-side // 4), -(-side // 8))
        ]
        weight = torch.randn(channels, 4 * channels, 3, 3, generator=generator) * (36 * channels) ** -0.5
        self.weight = weight.to(conditions.device)
        for each in (*self.maps, self.weight):
            each.requires_grad_(train)
        self.conv = torch.compile(conv) if conditions.compiled else conv

    def step(self) -> None:
        """The outcome in inference mode; or forward and backward."""
        self._run()

    def outcome(self) -> Outcome:
        """The fused map; of a training step also all gradients."""
        fused = {"map": self._run().detach()}
        grown = {f"gradient of map {i}": each.grad for i, each in enumerate(self.maps)}
        grown["gradient of weight"] = self.weight.grad
        return fused | {name: each.clone() for name, each in grown.items() if each is not None}

    def _run(self) -> Tensor:
        if not self.train:
            with torch.inference_mode(), self.conditions.autocast():
                return self.conv(self.maps, self.weight)
        for each in (*self.maps, self.weight):
            each.grad = None
        with self.conditions.autocast():
            fused = self.conv(self.maps, self.weight)
        fused.float().square().mean().backward()  # type: ignore[no-untyped-call]
        return fused


def _ours(maps: list[Tensor], weight: Tensor) -> Tensor:
    return conv_of_resized(maps, weight, size=(maps[0].shape[2], maps[0].shape[3]))


def _torch(maps: list[Tensor], weight: Tensor) -> Tensor:
    first, *others = maps
    size = (first.shape[2], first.shape[3])
    resized = [F.interpolate(each, size=size, mode="bilinear", align_corners=False) for each in others]
    return F.conv2d(torch.cat([first, *resized], dim=1), weight, padding=1)


def _row(name: str, summary: str, *, train: bool, cpu: Goal, cuda: Goal) -> Row:
    def job(conv: Conv) -> Callable[[Conditions], Job]:
        return lambda conditions: FusionJob(conv, conditions, train=train)

    ours, theirs = job(_ours), job(_torch)
    peer = Peer("torch", "torch", theirs, lambda conditions: Pair(ours(conditions), theirs(conditions)))
    return Row(name, summary, ours, (peer,), {"cpu": cpu, "cuda": cuda}, NOTES)


ROWS = (
    _row(
        "fuse_conv_forward",
        "UperNet's fusion convolution, 4 x 512 channels, 128 x 128, inference",
        train=False,
        cpu=Goal(0.37, 0.40),
        cuda=Goal(0.42, 0.40),
    ),
    _row(
        "fuse_conv_train",
        "UperNet's fusion convolution, 4 x 512 channels, 128 x 128, forward and backward",
        train=True,
        cpu=Goal(0.40, 0.40),
        cuda=Goal(0.42, 0.40),
    ),
)
