"""Zero-shot accuracy of a run's model on the data sets of its recipe, exact over any number of processes."""

from contextlib import closing
from functools import partial

import torch
from lightning.fabric import Fabric

from vitdense.contracts import IGNORE, Sample, Samples
from vitdense.data.loader import eval_loader
from vitdense.engine.launch import sum_over_processes
from vitdense.errors import DataError, UserError
from vitdense.metrics.accuracy import Accuracy
from vitdense.model import Model
from vitdense.recipe import Recipe
from vitdense.zero_shot.classification import build_classifier, with_texts
from vitdense.zero_shot.config import ZeroShotConfig


def evaluate_zero_shot(fabric: Fabric, model: Model, recipe: Recipe, *, limit: int | None = None) -> dict[str, float]:
    """NAME_top1 and NAME_top5 for each entry of `zero_shot:`; each process encodes its share of the pictures, or of
    `limit` of them."""
    results: dict[str, float] = {}
    model = with_texts(model) if recipe.zero_shot else model
    for name, config in recipe.zero_shot.items():
        found = _evaluate(fabric, model, config, limit)
        results |= {f"{name}_{rank}": found[rank] for rank in ("top1", "top5")}
    return results


def check_zero_shot(recipe: Recipe, model: Model) -> None:
    """Say before the first step what would fail at the first evaluation."""
    if recipe.zero_shot:
        with_texts(model)
    for name, config in recipe.zero_shot.items():
        samples = config.data.build("val")
        if "label" not in _first(samples, skips=config.data.on_bad_sample == "skip"):
            raise UserError(f"zero_shot.{name}.data: {config.data_name} has no label for each picture")
        config.matched(samples.classes)


def _first(samples: Samples, *, skips: bool) -> Sample:
    """The first one that can be read; DataError where the first can't, or, if it `skips` such, none can."""
    for index in range(len(samples) - 1):
        try:
            return samples[0, index]
        except DataError:
            if not skips:
                raise
    return samples[0, len(samples) - 1]


def _evaluate(fabric: Fabric, model: Model, config: ZeroShotConfig, limit: int | None) -> dict[str, float]:
    samples: Samples = config.data.build("val")
    matched = config.matched(samples.classes)
    metric = Accuracy(tuple(each.name for each in matched.classes))
    places = torch.tensor([*matched.places, IGNORE])  # the last stands for itself
    batches = eval_loader(samples, config.data, rank=fabric.global_rank, world_size=fabric.world_size, limit=limit)
    with torch.no_grad(), fabric.autocast(), closing(batches):
        classifier = build_classifier(model, config.prompts(), matched.classes)
        for batch in batches:
            embeddings = model.encode_image(batch["images"].to(fabric.device))
            metric.update(list(classifier.logits(embeddings)), {"labels": places[batch["labels"]]})
    if fabric.world_size > 1:
        metric.reduce(partial(sum_over_processes, fabric))
    return metric.compute()
