"""A trained model that a run learns from: what it makes of each batch travels with the batch."""

import torch
from lightning.fabric import Fabric
from torch import Tensor

from vitdense.contracts import Batch, ContrastiveHead, Head
from vitdense.errors import UserError
from vitdense.loading import load_model
from vitdense.recipe import TeacherConfig


class Teacher:
    """`teacher: {model, weight}`: embeddings of pictures and texts, with its own mean, deviation and tokenizer."""

    def __init__(self, config: TeacherConfig, fabric: Fabric, learner: Head) -> None:
        if not isinstance(learner, ContrastiveHead):
            raise UserError(f"teacher: it teaches heads that compare pictures with texts, not {type(learner).__name__}")
        model = load_model(config.model)
        if not isinstance(model.head, ContrastiveHead):
            raise UserError(f"teacher.model: {config.model} has no space that pictures and texts share")
        self.model, self.fabric = model.to(fabric.device).requires_grad_(False), fabric
        self.weight = torch.tensor(config.weight, device=fabric.device)

    @torch.no_grad()
    def teach(self, batch: Batch) -> Batch:
        """The batch with `teacher`: what the model gives for its pictures and captions, and the weight ()."""
        assert isinstance(self.model.head, ContrastiveHead)
        tokens = self.model.head.tokenizer([text for texts in batch["captions"] for text in texts])
        own: Batch = {"images": batch["images"], "tokens": tokens.to(self.fabric.device)}
        with self.fabric.autocast():
            outputs: dict[str, Tensor] = self.model(own)
        named = ("image_embeddings", "text_embeddings", "logit_scale")
        return {**batch, "teacher": {name: outputs[name].float() for name in named} | {"weight": self.weight}}
