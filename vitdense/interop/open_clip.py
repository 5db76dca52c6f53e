"""Contrastive models under open_clip's face, for its zero-shot functions, open_clip_train's and CLIP_benchmark's."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.errors import UserError
from vitdense.loading import load_model
from vitdense.model import Model
from vitdense.zero_shot.classification import contrastive_head, with_texts
from vitdense.zero_shot.labelled import preparation_of

LONGEST = 1000
"""Words of a text that fills the context of any tower."""


class VisualFace(nn.Module):
    """`model.visual`: the size of pictures, and the tower alone."""

    def __init__(self, encode: Callable[[Tensor], Tensor], image_size: tuple[int, int]) -> None:
        super().__init__()
        self.image_size, self._encode = image_size, encode

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, 3, H, W), normalised -> (B, D), not normalised."""
        return self._encode(image)


class OpenClipFace(nn.Module):
    """A model with open_clip's methods: images come normalised, as open_clip's own transforms leave them."""

    def __init__(self, model: Model, *, output_dict: bool = False) -> None:
        super().__init__()
        self.model, self.output_dict = with_texts(model), output_dict
        self.visual = VisualFace(self.encode_image, image_size_of(model))

    @property
    def logit_scale(self) -> Tensor:
        """The logarithm of the factor, as open_clip stores it."""
        return contrastive_head(self.model).scale_and_bias()["logit_scale"].log()

    @property
    def logit_bias(self) -> Tensor | None:
        """What is added to logits, if anything."""
        return contrastive_head(self.model).scale_and_bias().get("logit_bias")

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """image: (B, 3, H, W), normalised -> (B, D)."""
        head = contrastive_head(self.model)
        found = head.encode_image(head.look(self.model.backbone, image))
        return F.normalize(found, dim=-1) if normalize else found

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """text: tokens (N, L) int64 -> (N, D)."""
        return self.model.encode_text(text, normalize=normalize)

    def get_logits(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, H, W) and tokens (N, L) -> logits (B, N) and (N, B)."""
        logits = self.encode_image(image, normalize=True) @ self.encode_text(text, normalize=True).T
        logits = self.logit_scale.exp() * logits
        if self.logit_bias is not None:
            logits = logits + self.logit_bias
        return logits, logits.T

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> Any:
        """Embeddings of unit length of what is given, and the factor of logits, as a tuple or a dict."""
        found: dict[str, Tensor | None] = {
            "image_features": None if image is None else self.encode_image(image, normalize=True),
            "text_features": None if text is None else self.encode_text(text, normalize=True),
            "logit_scale": self.logit_scale.exp(),
        }
        if self.logit_bias is not None:
            found["logit_bias"] = self.logit_bias
        return found if self.output_dict else tuple(found.values())


class FaceTokenizer:
    """A text or several -> tokens (N, context_length) int64, as open_clip's tokenizers are called: always so many
    columns, since data loaders stack what they tokenize one by one."""

    def __init__(self, model: Model) -> None:
        self._tokenizer = contrastive_head(with_texts(model)).tokenizer
        self.context_length = self._tokenizer(["a " * LONGEST]).shape[1]

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Text or texts -> (N, context_length); UserError for another context than the tower's."""
        if context_length not in (None, self.context_length):
            raise UserError(f"the text tower reads {self.context_length} tokens, given context_length {context_length}")
        # Behind a text that fills the context the others are padded to it, whatever the tokenizer pads with.
        filler = "a " * self.context_length
        return self._tokenizer([filler, *([texts] if isinstance(texts, str) else texts)])[1:]


def transform_of(model: Model) -> Callable[[Any], Tensor]:
    """A PIL picture -> (3, H, W), normalised, as the model's publisher does it."""
    from torchvision.transforms import Compose, Normalize, ToTensor

    steps = [preparation_of(model), ToTensor(), Normalize(model.backbone.mean, model.backbone.std)]
    made: Callable[[Any], Tensor] = Compose(steps)
    return made


def image_size_of(model: Model) -> tuple[int, int]:
    """(H, W) of pictures that the publisher's preparation gives of a square one."""
    from PIL import Image

    made = preparation_of(model)(Image.new("RGB", (512, 512)))
    return made.height, made.width


def create_model_and_transforms(
    source: str | Path, *, device: str | torch.device = "cpu", output_dict: bool = False
) -> tuple[OpenClipFace, Callable[[Any], Tensor], FaceTokenizer]:
    """A checkpoint of ours, or anything else that `vitdense.load_model` takes, as (model, preprocess, tokenizer)."""
    model = with_texts(load_model(source))
    if len(model.backbone.mean) != 3:
        raise UserError(f"{source} takes pictures of {len(model.backbone.mean)} channels; open_clip's have 3")
    face = OpenClipFace(model.to(device), output_dict=output_dict).eval()
    return face, transform_of(model), FaceTokenizer(model)
