"""Text towers by name: the face of each, and `text: {name: ...}` in a recipe."""

from abc import ABC, abstractmethod
from itertools import takewhile
from typing import Annotated

from pydantic import SerializeAsAny
from torch import Tensor, nn

from vitdense.contracts import Tokenizer
from vitdense.errors import UserError
from vitdense.registry import Config, Registry, by_name


class TextConfig(Config):
    """Options of one text tower."""

    def build(self) -> "TextTower":
        """A tower with fresh weights."""
        raise NotImplementedError

    def tokens(self) -> Tokenizer:
        """The tokenizer whose tokens the tower reads; UserError where they can't go together, or files are absent."""
        raise NotImplementedError


class TextTower(nn.Module, ABC):
    """Texts in, one vector for each out, not yet projected."""

    width: int

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (N, L) int64 -> (N, width)."""

    @property
    @abstractmethod
    def layers(self) -> nn.ModuleList:
        """The blocks, first to last; parameters of what comes after them are registered after theirs."""

    def no_decay(self) -> set[str]:
        """Names of parameters of two or more dimensions that weight decay must leave alone: tables."""
        tables = {name for name, module in self.named_modules() if isinstance(module, nn.Embedding)}
        return {f"{name}.weight" for name in tables}

    def lock(self, unlocked_layers: int = 0) -> None:
        """Nothing learns but the last `unlocked_layers` blocks, and what comes after them."""
        if unlocked_layers > len(self.layers):
            raise UserError(f"unlocked_layers is {unlocked_layers}, and the text tower has {len(self.layers)} layers")
        first = next(self.layers[-unlocked_layers].parameters()) if unlocked_layers else None
        for parameter in takewhile(lambda each: each is not first, self.parameters()):
            parameter.requires_grad_(False)


TEXTS: Registry[TextConfig] = Registry(
    "text tower", ("heads.contrastive.text_transformer", "heads.contrastive.hf_text"), plugins=False
)

NamedText = Annotated[SerializeAsAny[TextConfig], *by_name(TEXTS)]
"""A field that a recipe fills by name."""
