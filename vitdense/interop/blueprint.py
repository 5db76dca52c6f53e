"""What a backbone is made of, without its weights: name, every option spelled out, and adapter; as plain JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

from vitdense.build import create_backbone
from vitdense.contracts import Backbone
from vitdense.errors import UserError
from vitdense.registry import Config


@dataclass(frozen=True)
class Blueprint:
    """`adapter` is a name, or {"name": ..., options}, as `create_backbone` takes it."""

    name: str
    options: Mapping[str, Any]
    adapter: str | Mapping[str, Any] | None = None

    @classmethod
    def of(cls, backbone: Backbone) -> Self:
        """What would build this backbone again, the options that came with its weights among the others."""
        if backbone.config is None:
            raise UserError(f"{type(backbone).__name__} doesn't know its name: make it with vitdense.create_backbone")
        adapter = backbone.adapter_config
        return cls(
            name=backbone.config.preset,
            options=_spelled_out(backbone.config),
            adapter=None if adapter is None else {"name": adapter.preset, **_spelled_out(adapter)},
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any], source: str) -> Self:
        """From what `to_json` gave; UserError, naming `source`, where it is something else."""
        if "name" not in data or not isinstance(data.get("options"), Mapping):
            raise UserError(f"{source} describes no vitdense backbone: it has {sorted(data)}, needs name and options")
        return cls(data["name"], data["options"], data.get("adapter"))

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings."""
        adapter = self.adapter if self.adapter is None or isinstance(self.adapter, str) else dict(self.adapter)
        return {"name": self.name, "options": dict(self.options), "adapter": adapter}

    def build(self) -> Backbone:
        """The backbone with fresh weights; on the CPU where a loader has made the meta device the default."""
        device = torch.get_default_device()
        with torch.device("cpu") if device.type == "meta" else device:
            return create_backbone(self.name, adapter=self.adapter, **self.options)

    def sketch(self) -> Backbone:
        """As `build`, without memory where that is possible: names with a slash are measured, which needs numbers."""
        if "/" in self.name:
            return self.build()
        with torch.device("meta"):
            return create_backbone(self.name, adapter=self.adapter, **self.options)


def _spelled_out(config: Config) -> dict[str, Any]:
    """Every option but `weights`: those are in the backbone already, and would be fetched again."""
    return config.model_dump(mode="json", exclude={"weights"})
