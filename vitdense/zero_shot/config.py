"""`zero_shot:` of a recipe: data sets whose classes are found by name while a run goes on."""

from typing import Any

from pydantic import SerializeAsAny, field_validator

from vitdense.contracts import DataConfig
from vitdense.errors import UserError
from vitdense.registry import Config
from vitdense.zero_shot.prompts import NAMES, ClassName, Prompts, checked_classes, class_names, read_prompts


class ZeroShotConfig(Config):
    """`data` has pictures with labels, `templates` are as in tools/zero_shot.py, or a list; `classes` stand in for the
    data set's own class names, in their order."""

    data: SerializeAsAny[DataConfig]
    data_name: str
    templates: str | tuple[str, ...] = "plain"
    classes: str | tuple[str, ...] | None = None

    @field_validator("templates")
    @classmethod
    def _templates_exist(cls, given: str | tuple[str, ...]) -> str | tuple[str, ...]:
        read_prompts(given)
        return given

    @field_validator("classes")
    @classmethod
    def _classes_exist(cls, given: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if given is not None:
            class_names(given)
        return given

    def prompts(self) -> Prompts:
        """The templates."""
        return read_prompts(self.templates)

    def named(self, own: tuple[str, ...]) -> tuple[ClassName, ...]:
        """Class names for a data set that calls its classes so; UserError where there are more or fewer."""
        if self.classes is None:
            return checked_classes([ClassName(name, (name,)) for name in own], f"data set {self.data_name!r}")
        given = class_names(self.classes)
        if len(given) != len(own):
            raise UserError(f"data set {self.data_name!r} has {len(own)} classes, and {len(given)} names are given")
        return given

    def written(self) -> dict[str, Any]:
        """As a recipe has it, with what files say in their place: checkpoints are read where those are not."""
        templates = self.templates if self.templates in NAMES else list(self.prompts().templates)
        named = [] if self.classes is None else class_names(self.classes)
        classes = [f"{each.name}={'|'.join(each.words)}" for each in named] or None
        data = {"name": self.data_name, **self.data.model_dump(mode="json")}
        return {"data": data, "templates": templates, "classes": classes}
