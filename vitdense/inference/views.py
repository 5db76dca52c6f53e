"""One class of a whole picture or clip: the mean probability over several views of it."""

import torch

from vitdense.contracts import Batch, Outputs
from vitdense.errors import UserError
from vitdense.inference.config import InferenceConfig, PredictingModel, fit, resize_images
from vitdense.ops.resizing import full_precision


def look_at_views(model: PredictingModel, batch: Batch, config: InferenceConfig) -> Outputs:
    """batch["images"]: (B * V, C, ...) of V = batch["views"] views of each -> the model's outputs of B.

    Of several views the class probabilities are averaged, as is usual for clips (mmaction2's `average_clips: prob`),
    `window_batch` images at a time; `logits` (B, K) are their logarithms.
    """
    images = batch["images"]
    height, width = images.shape[-2:]
    fitted: Batch = {**batch, "images": resize_images(images, fit((height, width), config))}
    views = batch.get("views", 1)
    if views == 1:
        return model(fitted)
    found = []
    for part in torch.split(fitted["images"], config.window_batch):
        outputs = model({"images": part})
        if "logits" not in outputs or outputs["logits"].ndim != 2:
            raise UserError(
                "several views of a clip need a head that gives logits (B, K); set data.views and crops to 1"
            )
        found.append(full_precision(outputs["logits"]).softmax(dim=-1))
    mean = torch.cat(found).view(-1, views, found[0].shape[1]).mean(dim=1)  # (B, K)
    return {"logits": mean.clamp_min(torch.finfo(mean.dtype).tiny).log()}
