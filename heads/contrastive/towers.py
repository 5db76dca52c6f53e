"""Text towers by name: the face of each, and `text: {name: ...}` in a recipe."""

from abc import ABC, abstractmethod
from typing import Annotated

from pydantic import SerializeAsAny
from torch import Tensor, nn

from vitdense.contracts import Tokenizer
from vitdense.registry import Config, Registry, by_name


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

NamedText = Annotated[SerializeAsAny[TextConfig], *by_name(TEXTS)]
"""A field that a recipe fills by name."""
