"""Zero-shot classification in open_clip's own words."""

from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor
from torchvision.datasets import ImageFolder


@torch.no_grad()
def by_open_clip(theirs: Any, root: Path, templates: Any, names: list[str] | None = None) -> tuple[Tensor, Tensor]:
    """open_clip's classifier on torchvision's folder under its own transform -> probabilities (N, K), labels (N,)."""
    pictures = ImageFolder(str(root), open_clip.image_transform((40, 40), False))
    weights = open_clip.build_zero_shot_classifier(
        theirs, open_clip.SimpleTokenizer(), names or pictures.classes, templates
    )
    images = torch.stack([image for image, _ in pictures])
    logits = theirs.logit_scale.exp() * theirs.encode_image(images, normalize=True) @ weights
    return logits.softmax(1), torch.tensor(pictures.targets)
