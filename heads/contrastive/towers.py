"""Text towers by name: the face of each, and `text: {name: ...}` in a recipe."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, SerializerFunctionWrapHandler, WrapSerializer
from torch import Tensor, nn

from vitdense.contracts import Tokenizer
from vitdense.registry import Config, Registry


class TextConfig(Config):
    """Options of one text tower."""

    def build(self) -> "TextTower":
        """A tower with fresh weights."""
        raise NotImplementedError

    def tokens(self) -> Tokenizer:
        """The tokenizer whose tokens the tower reads."""
        raise NotImplementedError


class TextTower(nn.Module, ABC):
    """Texts in, one vector for each out, not yet projected."""

    width: int

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (N, L) int64 -> (N, width)."""


TEXTS: Registry[TextConfig] = Registry("text tower", ("heads.contrastive.text_transformer",), plugins=False)


def _by_name(given: object) -> object:
    """{"name": ..., options} or a name -> the config of a registered tower."""
    if isinstance(given, str):
        return TEXTS.create_or_tell(given)
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        return given
    options = dict(given)
    return TEXTS.create_or_tell(options.pop("name"), options)


def _with_name(config: TextConfig, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
    return {"name": config.preset, **dump(config)}


NamedText = Annotated[SerializeAsAny[TextConfig], BeforeValidator(_by_name), WrapSerializer(_with_name)]
"""A field that a recipe fills by name."""
