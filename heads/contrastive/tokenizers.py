"""Tokenizers of open_clip and transformers by name, which give no more columns than the tower looks at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vitdense.contracts import Tokenizer

TokenizerName = str


def create_tokenizer(name: TokenizerName, *, context: int, vocab: int, trim: bool) -> Tokenizer:
    """For "clip", OpenAI's, which needs no file, "siglip", or transformers' "hf/<repo>"; `trim` to the longest text."""
    return TrimmedTokenizer(name, context, trim)


@dataclass(frozen=True)
class TrimmedTokenizer:
    """N texts -> (N, L) int64: the library's own tokens without the columns that no text of these reaches."""

    name: TokenizerName
    context: int
    trim: bool

    def __call__(self, texts: Sequence[str], /) -> Tensor:
        """N texts -> (N, L) int64."""
        tokens = _library(self.name, self.context)(list(texts))
        if not self.trim or not len(tokens):
            return tokens
        return tokens[:, : int(tokens.argmax(dim=1).max()) + 1]


@lru_cache
def _library(name: TokenizerName, context: int) -> Callable[[list[str]], Tensor]:
    """Made once in each process: vocabularies take a while to read."""
    import open_clip

    made: Any = open_clip.SimpleTokenizer(context_length=context)

    def tokens(texts: list[str]) -> Tensor:
        return torch.as_tensor(made(texts))

    return tokens
