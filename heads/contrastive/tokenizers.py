"""Tokenizers of open_clip and transformers by name, which give no more columns than the tower looks at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vitdense.contracts import Tokenizer
from vitdense.errors import UserError

TokenizerName = str
"""`clip`: OpenAI's, which needs no file. `siglip` and `siglip2`: of sentence pieces, texts lower-cased and without
punctuation; `siglip/<folder>` with files at hand. `hf/<repo or folder>`: any of transformers'."""

Trim = Literal["end", "pad"] | None

SIGLIP = {"siglip": "timm/ViT-B-16-SigLIP", "siglip2": "timm/ViT-B-16-SigLIP2"}


def create_tokenizer(
    name: TokenizerName, *, context: int, vocab: int, trim: Trim, end_token: int | None = None
) -> Tokenizer:
    """`context` columns at most; `trim` cuts what is behind every text's end, or behind all that is not padding.

    UserError where its files are absent, and where it gives numbers that a tower of `vocab` tokens doesn't know.
    """
    made = TrimmedTokenizer(name, context, trim, end_token)
    size = _library(name, context).size
    if size > vocab:
        raise UserError(
            f"tokenizer {name!r} gives numbers up to {size - 1}, and the text tower knows {vocab} tokens: "
            f"set vocab to {size} or more, or take the tokenizer that the tower was made for"
        )
    return made


@dataclass(frozen=True)
class TrimmedTokenizer:
    """N texts -> (N, L) int64: the library's own tokens without the columns that no text of these reaches.

    Texts that are too long keep their end token; an empty text is its marks alone. It pickles, and each process reads
    the vocabulary once.
    """

    name: TokenizerName
    context: int
    trim: Trim
    end_token: int | None = None

    def __call__(self, texts: Sequence[str], /) -> Tensor:
        """N texts -> (N, L) int64."""
        library = _library(self.name, self.context)
        tokens = library.encode(list(texts)) if texts else torch.zeros(0, self.context, dtype=torch.long)
        if self.trim is None or not len(tokens):
            return tokens
        return tokens[:, : self._reach(tokens, library.pad)]

    def _reach(self, tokens: Tensor, pad: int) -> int:
        """The columns that the longest text needs."""
        if self.trim == "pad":
            # One more, since some pad with the number that also ends a text.
            filled = (tokens != pad).any(dim=0).nonzero()
            return int(filled.max()) + 2 if len(filled) else 1
        marks = tokens if self.end_token is None else (tokens == self.end_token).int()
        return int(marks.argmax(dim=1).max()) + 1

    def decode(self, tokens: Sequence[int]) -> str:
        """Numbers -> the text that they stand for, without marks and padding."""
        return _library(self.name, self.context).decode(tokens)


class Library(NamedTuple):
    """What one library's tokenizer does: texts to (N, context), numbers to text; how many numbers, and the padding."""

    encode: Callable[[list[str]], Tensor]
    decode: Callable[[Sequence[int]], str]
    size: int
    pad: int


@lru_cache
def _library(name: TokenizerName, context: int) -> Library:
    """Made once in each process: vocabularies take a while to read."""
    if name == "clip":
        return _openai(context)
    kind, _, place = name.partition("/")
    if kind in SIGLIP:
        return _of_transformers(name, place or SIGLIP[kind], context, clean="canonicalize")
    if kind == "hf" and place:
        return _of_transformers(name, place, context, clean="whitespace")
    raise UserError(f"no tokenizer named {name!r}; known: clip, {', '.join(SIGLIP)}, hf/<repo or folder>")


def _openai(context: int) -> Library:
    import open_clip

    made: Any = open_clip.SimpleTokenizer(context_length=context)
    marks = set(made.all_special_ids)

    def encode(texts: list[str]) -> Tensor:
        return torch.as_tensor(made(texts))

    def decode(tokens: Sequence[int]) -> str:
        numbers = list(tokens)
        if made.eot_token_id in numbers:
            numbers = numbers[: numbers.index(made.eot_token_id)]
        return str(made.decode([number for number in numbers if number not in marks])).strip()

    return Library(encode, decode, size=made.vocab_size, pad=0)


def _of_transformers(name: TokenizerName, place: str, context: int, *, clean: str) -> Library:
    """AutoTokenizer behind open_clip's cleaning of texts."""
    from open_clip.tokenizer import get_clean_fn

    made, cleaned = _auto_tokenizer(name, place), get_clean_fn(clean)
    made.padding_side = made.truncation_side = "right"
    if made.pad_token_id is None:
        raise UserError(f"tokenizer {name!r} has no token for padding: set pad_token in its tokenizer_config.json")

    def encode(texts: list[str]) -> Tensor:
        given = made(
            [cleaned(text) for text in texts],
            padding="max_length",
            truncation=True,
            max_length=context,
            return_tensors="pt",
        )
        return torch.as_tensor(given.input_ids)

    def decode(tokens: Sequence[int]) -> str:
        return str(made.decode(list(tokens), skip_special_tokens=True)).strip()

    return Library(encode, decode, size=len(made), pad=made.pad_token_id)


def _auto_tokenizer(name: TokenizerName, place: str) -> Any:
    from transformers import AutoTokenizer

    path = Path(place).expanduser()
    try:
        return AutoTokenizer.from_pretrained(str(path) if path.is_dir() else place)
    except (OSError, ValueError, KeyError, ImportError) as error:
        prefix = name.partition("/")[0]
        raise UserError(
            f"tokenizer {name!r}: its files are neither in the folder {place} nor to be fetched; on a machine with "
            f"network run `hf download {place} --local-dir FOLDER` and set tokenizer: {prefix}/FOLDER"
        ) from error
