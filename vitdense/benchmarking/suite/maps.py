"""The job of most rows: pictures or clips to maps through a backbone, as inference or as a training step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from vitdense.benchmarking.rows import SEED, AbsentError, Conditions, Job, Outcome, Pair, Peer
from vitdense.build import create_backbone, list_backbones
from vitdense.contracts import Backbone
from vitdense.errors import WeightsError

DEVIATION = 0.12


class Size(Protocol):
    """How large a network is, and the side of its square pictures."""

    @property
    def side(self) -> int:
        """Pixels."""

    def options(self) -> dict[str, Any]:
        """As options of ours."""


S = TypeVar("S", bound=Size)
Gradients = dict[str, Tensor]


def enliven(network: nn.Module) -> nn.Module:
    """Random weights that carry a signal at any width, the same for the same network: fresh ones hide faults."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            matrix = parameter.ndim in (2, 4, 5) and name.endswith("weight")
            deviation = parameter[0].numel() ** -0.5 if matrix else DEVIATION
            centre = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            parameter.copy_(centre + deviation * torch.randn(parameter.shape, generator=generator))
    return network


class MapsJob(Job):
    """Random pictures through a network; a training step is the mean squares of all maps, summed, and their gradients.

    `read` calls the network and gives its maps (B, C, H, W); `rename` gives the gradients our names. With `frames` they
    are clips (B, 3, T, H, W), and so are the maps.
    """

    def __init__(
        self,
        network: nn.Module,
        conditions: Conditions,
        *,
        side: int,
        train: bool,
        read: Callable[[Any, Tensor], list[Tensor]],
        rename: Callable[[Gradients], Gradients],
        frames: int | None = None,
    ) -> None:
        self.network = network.to(conditions.device).train(train)
        self.conditions = conditions
        self.train = train
        self.rename = rename

        def maps(images: Tensor) -> list[Tensor]:
            return read(self.network, images)

        self.maps: Callable[[Tensor], list[Tensor]] = torch.compile(maps) if conditions.compiled else maps
        generator = torch.Generator().manual_seed(SEED)
        shape = (conditions.batch or 1, 3, *([] if frames is None else [frames]), side, side)
        self.images = torch.randn(shape, generator=generator).to(conditions.device)

    def step(self) -> None:
        """Maps in inference mode; or zero_grad, forward and backward."""
        if not self.train:
            self._infer()
            return
        self._learn()

    def outcome(self) -> Outcome:
        """Maps; of a training step also the loss and the gradients of all parameters and of the pictures."""
        if not self.train:
            return _numbered(self._infer())
        # Compiled, a gradient of the pictures would be other work than what is timed, and compiled anew.
        self.images.requires_grad_(not self.conditions.compiled)
        maps, loss = self._learn()
        grown = {name: each.grad for name, each in self.network.named_parameters() if each.grad is not None}
        gradients = self.rename({name: each for name, each in grown.items() if each.any()})
        if self.images.grad is not None:
            gradients["images"] = self.images.grad
        self.images = self.images.detach()
        named = {f"gradient of {name}": gradient for name, gradient in gradients.items()}
        return {**_numbered([each.detach() for each in maps]), "loss": loss.detach(), **named}

    def _infer(self) -> list[Tensor]:
        with torch.inference_mode(), self.conditions.autocast():
            return self.maps(self.images)

    def _learn(self) -> tuple[list[Tensor], Tensor]:
        self.network.zero_grad(set_to_none=True)
        with self.conditions.autocast():
            maps = self.maps(self.images)
        loss = torch.stack([each.float().square().mean() for each in maps]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return maps, loss


def _numbered(maps: list[Tensor]) -> Outcome:
    return {f"map {i}": each for i, each in enumerate(maps)}


@dataclass(frozen=True)
class MapsWork(Generic[S]):
    """A preset of ours at the row's size, and at a tiny one for tests; on clips of `frames` frames, or on pictures."""

    preset: str
    full: S
    tiny: S
    train: bool
    frames: int | None = None

    def ours(self, conditions: Conditions) -> Job:
        """Ours in its default conventions, as it is timed."""
        size = self._size(conditions)
        return self._our_job(enliven(self._backbone(self.preset, **size.options())), conditions)

    def against(
        self,
        name: str,
        needs: str,
        build: Callable[[S], nn.Module],
        read: Callable[[Any, Tensor], list[Tensor]],
        conventions: Mapping[str, Any] = MappingProxyType({}),
        *,
        preset: str | None = None,
    ) -> Peer:
        """A peer; `conventions` are our options, on `preset` if it is another, under which ours must equal it."""

        def theirs(conditions: Conditions) -> MapsJob:
            size = self._size(conditions)

            def rename(gradients: Gradients) -> Gradients:
                return self._renamed(network, gradients, preset, {**size.options(), **conventions})

            network = enliven(build(size))
            return self._job(network, conditions, read, rename)

        def pair(conditions: Conditions) -> Pair:
            options = {**self._size(conditions).options(), **conventions}
            job = theirs(conditions)
            twin = self._backbone(preset or self.preset, **options, weights=job.network.state_dict())
            return Pair(self._our_job(twin, conditions), job)

        return Peer(name, needs, theirs, pair)

    def _size(self, conditions: Conditions) -> S:
        return self.tiny if conditions.tiny else self.full

    def _our_job(self, backbone: nn.Module, conditions: Conditions) -> MapsJob:
        return self._job(backbone, conditions, _call, dict)

    def _job(
        self,
        network: nn.Module,
        conditions: Conditions,
        read: Callable[[Any, Tensor], list[Tensor]],
        rename: Callable[[Gradients], Gradients],
    ) -> MapsJob:
        side = self._size(conditions).side
        return MapsJob(network, conditions, side=side, train=self.train, read=read, rename=rename, frames=self.frames)

    def _backbone(self, preset: str, **options: Any) -> Backbone:
        if preset not in list_backbones():
            raise AbsentError(f"there is no backbone {preset!r} yet")
        try:
            return create_backbone(preset, **options)
        except WeightsError as error:
            raise AbsentError(f"its weights don't fit ours: {str(error).partition(';')[0]}") from error

    def _renamed(
        self, network: nn.Module, gradients: Gradients, preset: str | None, options: dict[str, Any]
    ) -> Gradients:
        """Gradients under our names: they take the road of the weights, which renames, joins and reorders only."""
        state = {key: gradients.get(key, torch.zeros_like(each)) for key, each in network.state_dict().items()}
        backbone = self._backbone(preset or self.preset, **options, weights=state)
        assert backbone.load_report is not None
        used = [name for name in backbone.state_dict() if name not in backbone.load_report.fresh]
        return {name: each.detach() for name, each in backbone.named_parameters() if name in used and each.any()}


def _call(network: Any, images: Tensor) -> list[Tensor]:
    maps: list[Tensor] = network(images)
    return maps
