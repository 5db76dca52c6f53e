"""Several heads on one trunk, each with a task, a weight and predictions of its own: a recipe's `heads:`."""

from collections.abc import Callable, Mapping
from typing import Self

from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from heads.named import NamedHead
from vitdense.contracts import HEADS, Backbone, Batch, Head, HeadConfig, Level, Outputs, Predictions, Tokenizer
from vitdense.errors import UserError
from vitdense.registry import Config


class TaskConfig(Config):
    """A head, and what its losses are multiplied with."""

    head: NamedHead
    loss_weight: NonNegativeFloat = 1.0


@HEADS.register("tasks")
class TasksConfig(HeadConfig):
    """Heads by the name of their task. They read the same backbone, and the same batches."""

    tasks: dict[str, TaskConfig] = Field(min_length=1)

    def reads_all(self) -> bool:
        """Whether one of them reads every level."""
        return any(task.head.reads_all() for task in self.tasks.values())

    def for_classes(self, count: int) -> Self:
        """Each head for so many classes; what counts none doesn't mind."""
        return self._each(lambda head: head.for_classes(count))

    def for_things(self, things: tuple[bool, ...]) -> Self:
        """Each head for classes of which these are of things."""
        return self._each(lambda head: head.for_things(things))

    def tokenizer(self) -> Tokenizer | None:
        """That of the head that reads captions; UserError where two do, since a batch has tokens of one kind."""
        found = [(name, made) for name, task in self.tasks.items() if (made := task.head.tokenizer()) is not None]
        if len(found) > 1:
            raise UserError(f"heads {', '.join(name for name, _ in found)} all read captions; one can")
        return found[0][1] if found else None

    def build(self, levels: tuple[Level, ...]) -> "Tasks":
        """For heads that read maps alone."""
        return Tasks(self, {name: task.head.build(levels) for name, task in self.tasks.items()})

    def build_for(self, backbone: Backbone) -> "Tasks":
        """All heads for this backbone."""
        return Tasks(self, {name: task.head.build_for(backbone) for name, task in self.tasks.items()})

    def _each(self, change: Callable[[HeadConfig], HeadConfig]) -> Self:
        tasks = {name: task.model_copy(update={"head": change(task.head)}) for name, task in self.tasks.items()}
        return self.model_copy(update={"tasks": tasks})


class Tasks(Head):
    """Outputs are "<task>.<output>", losses "loss_<task>_<loss>", weighted, predictions {task: prediction}."""

    def __init__(self, config: TasksConfig, heads: Mapping[str, Head]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(heads)
        self.loss_weights = {name: task.loss_weight for name, task in config.tasks.items()}
        self.num_classes = max(head.num_classes for head in heads.values())
        self.joint = any(head.joint for head in heads.values())
        alone = [name for name, head in heads.items() if head.reads == "blocks"]
        if alone and len(heads) > 1:
            raise UserError(f"head {alone[0]} puts its queries into the backbone's blocks, and can't share them")
        asked = {(head.frozen_backbone, head.unlocked_layers): name for name, head in heads.items()}
        if len(asked) > 1:
            one, other, *_ = asked.values()
            raise UserError(
                f"heads {one} and {other} differ on what learns of the backbone: lock it for both or neither"
            )
        ((self.frozen_backbone, self.unlocked_layers),) = asked

    @property
    def tasks(self) -> Mapping[str, Head]:
        """The heads by task."""
        return {name: head for name, head in self.heads.items() if isinstance(head, Head)}

    def look(self, backbone: Backbone, images: Tensor, batch: Batch | None = None) -> list[Tensor]:
        """images: (B, C, H, W), normalised -> the maps, then the vector or the tokens, where a head reads them."""
        wanted = {head.reads for head in self.tasks.values()}
        if wanted == {"maps", "vector"}:
            maps, vector = backbone.maps_and_vector(images)
            return [*maps, vector]
        found: list[Tensor] = []
        for kind in ("maps", "vector", "tokens"):
            reader = next((head for head in self.tasks.values() if head.reads == kind), None)
            found += [] if reader is None else reader.look(backbone, images, batch)
        return found

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """What `look` gives -> the outputs of all heads."""
        kinds = [kind for kind in ("vector", "tokens") if any(head.reads == kind for head in self.tasks.values())]
        single = {kind: features[place - len(kinds)] for place, kind in enumerate(kinds)}
        maps = features[: len(features) - len(kinds)]
        outputs: Outputs = {}
        for name, head in self.tasks.items():
            given = maps if head.reads == "maps" else [single[head.reads]]
            outputs |= {f"{name}.{key}": value for key, value in head(given, batch).items()}
        return outputs

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Those of all heads, weighted."""
        return {
            f"loss_{name}_{kind.removeprefix('loss_')}": self.loss_weights[name] * value
            for name, head in self.tasks.items()
            for kind, value in head.losses(self.outputs_of(name, outputs), batch).items()
        }

    def predict(self, outputs: Outputs, batch: Batch) -> Predictions:
        """{task: prediction} for each picture."""
        found = {name: head.predict(self.outputs_of(name, outputs), batch) for name, head in self.tasks.items()}
        return [dict(zip(found, each, strict=True)) for each in zip(*found.values(), strict=True)]
