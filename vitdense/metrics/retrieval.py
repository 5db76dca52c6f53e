"""Recall at 1, 5 and 10 of texts for pictures and of pictures for texts."""

from collections.abc import Callable

import torch
from torch import Tensor

from vitdense.contracts import METRICS, Batch, Embeddings, Metric, MetricConfig, Predictions, Samples
from vitdense.errors import UserError

RANKS = (1, 5, 10)
ROWS = 1024
"""Pictures or texts that are compared with all others at a time."""


@METRICS.register("retrieval")
class RetrievalConfig(MetricConfig):
    """A picture may have several captions: to find one of them counts."""

    def build(self, samples: Samples) -> "Retrieval":
        """A metric for any pictures with captions."""
        return Retrieval()


class Retrieval(Metric):
    """Keeps the embeddings; ranks are counted in pieces, so that the table of all pairs never exists.

    A picture is found at rank r where r - 1 others are closer to the text; equal ones count half as closer, as a fair
    coin would put them.
    """

    def __init__(self) -> None:
        self.images: list[Tensor] = []
        self.texts: list[Tensor] = []
        self.counts: list[Tensor] = []

    def update(self, predictions: Predictions, batch: Batch) -> None:
        """predictions: Embeddings of each picture."""
        found: list[Embeddings] = [each for each in predictions if isinstance(each, Embeddings)]
        self.images += [each.image[None].float() for each in found]
        self.texts += [each.texts.float() for each in found]
        self.counts.append(torch.tensor([len(each.texts) for each in found]))

    def reduce(self, sum_over_processes: Callable[[Tensor], Tensor]) -> None:
        """Nothing is counted before the end."""

    def gather(self, gather_from_processes: Callable[[Tensor], Tensor]) -> None:
        """The embeddings of all processes."""
        # A process that saw no picture has to know the width all the same.
        widths = gather_from_processes(torch.tensor([self.images[0].shape[1] if self.images else 0]))
        empty = torch.zeros(0, int(widths.max()))
        for rows, none in ((self.images, empty), (self.texts, empty), (self.counts, torch.zeros(0, dtype=torch.long))):
            rows[:] = [gather_from_processes(torch.cat(rows or [none]))]

    def compute(self) -> dict[str, float]:
        """R@1, R@5 and R@10 of pictures for texts (`text_to_image`) and of texts for pictures."""
        if not sum(map(len, self.images)):
            raise UserError("metric 'retrieval' saw no pictures with captions")
        images, texts = torch.cat(self.images), torch.cat(self.texts)
        owner = torch.repeat_interleave(torch.cat(self.counts).to(images.device))  # (M,): whose caption each is
        of_pictures, of_texts = image_ranks(images, texts, owner), text_ranks(images, texts, owner)
        results = {f"image_to_text_R@{k}": (of_pictures <= k).double().mean().item() for k in RANKS}
        return results | {f"text_to_image_R@{k}": (of_texts <= k).double().mean().item() for k in RANKS}


def image_ranks(images: Tensor, texts: Tensor, owner: Tensor) -> Tensor:
    """images (N, D), texts (M, D), owner (M,) -> (N,): the rank of the best of each picture's own texts."""
    ranks = []
    for start in range(0, len(images), ROWS):
        products = images[start : start + ROWS] @ texts.T  # (rows, M)
        own = owner[None] == torch.arange(start, start + len(products), device=owner.device)[:, None]
        best = products.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        ranks.append(_rank(products.masked_fill(own, -torch.inf), best))
    return torch.cat(ranks)


def text_ranks(images: Tensor, texts: Tensor, owner: Tensor) -> Tensor:
    """images (N, D), texts (M, D), owner (M,) -> (M,): the rank of each text's picture."""
    ranks = []
    for start in range(0, len(texts), ROWS):
        products = texts[start : start + ROWS] @ images.T  # (rows, N)
        own = owner[start : start + ROWS, None]
        best = products.gather(1, own)
        ranks.append(_rank(products.scatter(1, own, -torch.inf), best))
    return torch.cat(ranks)


def _rank(others: Tensor, own: Tensor) -> Tensor:
    """others (rows, n), own (rows, 1) -> (rows,): 1 where none is closer."""
    return 1 + (others > own).sum(1) + 0.5 * (others == own).sum(1)
