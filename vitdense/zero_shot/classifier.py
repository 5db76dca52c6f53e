"""Classes as the mean of what is said of them: weights of a classifier from a text tower
(https://arxiv.org/abs/2103.00020, section 3.1.4)."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

TOGETHER = 64
"""Texts that are encoded at a time."""

Tokenize = Callable[[list[str]], Tensor]


class TextEncoder(Protocol):
    """What is needed of a model: ours and open_clip's have it."""

    def encode_text(self, text: Tensor, /, *, normalize: bool) -> Tensor:
        """tokens: (N, L) int64 -> (N, D)."""


@torch.no_grad()
def class_embeddings(
    model: TextEncoder,
    tokenize: Tokenize,
    prompts: Sequence[Sequence[str]],
    *,
    device: torch.device | str = "cpu",
    together: int = TOGETHER,
) -> Tensor:
    """The prompts of each of K classes -> (K, D), of unit length: the mean of the prompts' embeddings, each of unit
    length before, in fp32 or better. open_clip's build_zero_shot_classifier gives the same, transposed."""
    texts = list(dict.fromkeys(text for of_class in prompts for text in of_class))
    found = text_embeddings(model, tokenize, texts, device=device, together=together)
    place = {text: index for index, text in enumerate(texts)}
    rows = torch.tensor([place[text] for of_class in prompts for text in of_class], device=found.device)
    counts = [len(of_class) for of_class in prompts]
    means = torch.stack([part.mean(dim=0) for part in torch.split(found[rows], counts)])  # (K, D)
    return F.normalize(means, dim=-1)


@torch.no_grad()
def text_embeddings(
    model: TextEncoder,
    tokenize: Tokenize,
    texts: Sequence[str],
    *,
    device: torch.device | str = "cpu",
    together: int = TOGETHER,
) -> Tensor:
    """N texts -> (N, D), of unit length, in fp32 or better, those of a length together: a tokenizer that trims to the
    longest of its texts then leaves next to nothing to pad."""
    order = sorted(range(len(texts)), key=_lengths(tokenize(list(texts))).__getitem__)
    parts = []
    for start in range(0, len(order), together):
        tokens = tokenize([texts[index] for index in order[start : start + together]]).to(device)
        parts.append(model.encode_text(tokens, normalize=True))
    found = torch.cat(parts)
    found = found.to(torch.promote_types(found.dtype, torch.float32))
    return found[torch.tensor(order, device=found.device).argsort()]


def _lengths(tokens: Tensor) -> list[int]:
    """tokens: (N, L) -> how many columns each text takes before padding, which is what the shortest text ends with."""
    last = tokens[:, -1]
    columns = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    filled = ((tokens != last[:, None]) * columns).amax(dim=1)
    lengths: list[int] = torch.where(last == last[filled.argmin()], filled, tokens.shape[1]).tolist()
    return lengths
