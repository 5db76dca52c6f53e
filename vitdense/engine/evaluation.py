"""Metrics of a model on a split: exact under any batch size and any number of processes."""

from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from typing import Any

import torch
from lightning.fabric import Fabric
from PIL import Image
from torch import Tensor

from vitdense import pictures
from vitdense.contracts import IGNORE, Batch, Metric, Predictions, Samples, Target
from vitdense.data.loader import Batches, eval_loader
from vitdense.engine.launch import gather_from_processes, sum_over_processes
from vitdense.engine.zero_shot import evaluate_zero_shot
from vitdense.inference import infer
from vitdense.model import Model
from vitdense.recipe import Recipe


def evaluate(
    fabric: Fabric,
    model: Model,
    samples: Samples,
    recipe: Recipe,
    *,
    limit: int | None = None,
    panels: list[Any] | None = None,
    track: Callable[[Batches], Iterable[Batch]] = iter,
) -> tuple[dict[str, float], Metric]:
    """Metrics of a model on a split, exact over any number of processes; then those of the recipe's `zero_shot`.

    Some pictures, evenly spread, go into `panels`; `track` is what shows the progress.
    """
    metric = recipe.metric.build(samples)
    model.eval()
    rank, world_size = fabric.global_rank, fabric.world_size
    tokenize = recipe.head.tokenizer()
    batches = eval_loader(samples, recipe.data, rank=rank, world_size=world_size, limit=limit, tokenize=tokenize)
    own, wanted = len(range(rank, min(len(samples), limit or len(samples)), world_size)), recipe.engine.pictures
    shown, seen = {number * own // wanted for number in range(wanted)}, 0
    with torch.no_grad(), fabric.autocast(), closing(batches):
        for batch in track(batches):
            batch = to_device(batch, fabric.device)
            predictions = infer(model, batch, recipe.inference)
            metric.update(predictions, batch)
            if panels is not None and fabric.is_global_zero:
                for place in sorted(shown & set(range(seen, seen + len(predictions)))):
                    panel = _panel(batch, predictions, place - seen, model)
                    panels += [] if panel is None else [panel]
            seen += len(predictions)
    if fabric.world_size > 1:
        metric.reduce(partial(sum_over_processes, fabric))
        metric.gather(partial(gather_from_processes, fabric))
    return metric.compute() | evaluate_zero_shot(fabric, model, recipe, limit=limit), metric


def _panel(batch: Batch, predictions: Predictions, place: int, model: Model) -> Image.Image | None:
    """Picture, truth and prediction of one place in a batch; of depth its relative error too; of several heads theirs
    side by side, of one that gives no picture nothing."""
    if model.head.tasks:
        parts = [(model.alone(name), [each[name] for each in predictions]) for name in model.head.tasks]
        drawn = [panel for alone, own in parts if (panel := _panel(batch, own, place, alone)) is not None]
        return pictures.contact_sheet(drawn, columns=len(drawn)) if drawn else None
    if model.head.reads != "maps" and not (model.head.dense or model.head.segments or model.head.detects):
        return None
    if model.head.compares:
        before, after = batch["images"][place].permute(1, 2, 3, 0).cpu()  # (2, H, W, 3)
        truth, result = batch["masks"][place].cpu(), predictions[place].cpu()
        return pictures.panel(after, truth, result, model.classes, model.palette, before=before)
    if batch["images"].ndim == 5:
        return _panel(*_middle_frames(batch, predictions), place, model)
    pixels = _shown(batch["images"][place : place + 1])[0].permute(1, 2, 0).cpu()  # (H, W, 3)
    result = predictions[place].cpu()
    if model.head.segments:
        height, width = batch["sizes"][place]
        truth = class_map(batch["targets"][place]).cpu() if "targets" in batch else batch["masks"][place].cpu()
        return pictures.panel(pixels[:height, :width], truth, result.classes(), model.classes, model.palette)
    if model.head.detects:
        size = batch["sizes"][place]
        target = batch["targets"][place] if "targets" in batch else None
        return pictures.things_panel(pixels[: size[0], : size[1]], target, result, model.classes, model.palette)
    if model.head.dense == "depth":
        return pictures.depth_panel(pixels, batch["depth"][place].cpu(), result.float())
    return pictures.panel(pixels, batch["masks"][place].cpu(), result, model.classes, model.palette)


def _middle_frames(batch: Batch, predictions: Predictions) -> tuple[Batch, Predictions]:
    """Of clips and volumes the middle frame or slice as a picture (B, 3, H, W) uint8, with its mask and prediction."""
    middle = batch["images"].shape[2] // 2
    shown: Batch = {**batch, "images": _shown(batch["images"][:, :, middle])}
    if "masks" in batch:
        shown["masks"] = batch["masks"][:, middle]
    if "depth" in batch:
        shown["depth"] = batch["depth"][:, middle]
    return shown, [each[middle] for each in predictions]


def _shown(images: Tensor) -> Tensor:
    """images: (B, C, H, W), uint8 or floats in [0, 1] -> (B, 3, H, W) uint8: the first three channels, or the first."""
    if images.is_floating_point():
        images = (images.clamp(0, 1) * 255).to(torch.uint8)
    return images[:, :1].expand(-1, 3, -1, -1) if images.shape[1] < 3 else images[:, :3]


def class_map(target: Target) -> Tensor:
    """Masks (N, H, W) and their labels -> (H, W) int64 class indices, IGNORE where no mask lies."""
    masks, labels = target["masks"], target["labels"]
    nowhere = torch.full((1, *masks.shape[1:]), IGNORE, dtype=torch.int64, device=masks.device)
    return torch.cat([nowhere, torch.where(masks, labels[:, None, None], IGNORE)]).amax(0)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch with its tensors on a device."""

    def move(part: Any) -> Any:
        if isinstance(part, Tensor):
            return part.to(device, non_blocking=True)
        if isinstance(part, dict):
            return {key: move(value) for key, value in part.items()}
        return [move(each) for each in part] if isinstance(part, list) else part

    moved: Batch = move(batch)
    return moved
