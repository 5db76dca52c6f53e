"""`zero_shot:` of a recipe: data sets whose classes are found by name while a run goes on."""

from typing import Any

from pydantic import SerializeAsAny, field_validator

from vitdense.contracts import DataConfig
from vitdense.registry import Config
from vitdense.zero_shot.matching import Matched, match_classes
from vitdense.zero_shot.prompts import NAMES, ClassName, Prompts, class_names, read_prompts


class ZeroShotConfig(Config):
    """`data` has pictures with labels; `templates` and `classes` are as in tools/zero_shot.py, or lists. Classes, or
    those that came with the templates, stand in for the data set's own: by the same name, else in their order."""

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

    def matched(self, own: tuple[str, ...]) -> Matched:
        """Class names for a data set that calls its classes so; UserError where they can't be brought together."""
        return match_classes(own, self._listed())

    def _listed(self) -> tuple[ClassName, ...]:
        return self.prompts().classes if self.classes is None else class_names(self.classes)

    def written(self) -> dict[str, Any]:
        """As a recipe has it, with what files say in their place: checkpoints are read where those are not."""
        templates = self.templates if self.templates in NAMES else list(self.prompts().templates)
        classes = [f"{each.name}={'|'.join(each.words)}" for each in self._listed()] or None
        data = {"name": self.data_name, **self.data.model_dump(mode="json")}
        return {"data": data, "templates": templates, "classes": classes}
