"""DETR: object queries that read a whole map through a transformer (Carion et al. 2020,
https://arxiv.org/abs/2005.12872); parameters are named as in transformers' DetrForObjectDetection, without `model.`."""

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from heads.detection import DetectionConfig, DetectionHead
from heads.detection.losses import cross_entropy
from heads.detection.matching import Matches
from heads.detection.mlp import Mlp
from heads.detection.positions import sine_positions, valid_cells
from heads.detection.targets import Targets
from heads.detection.transformer import Decoder, Encoder, Shape
from heads.detr_masks import BoxAttention, MaskHead
from vitdense.contracts import HEADS, Batch, Level, Outputs
from vitdense.errors import UserError
from vitdense.ops.resizing import full_precision

_FINER = 3
"""Masks are refined with so many finer maps, where there are as many."""


@HEADS.register("detr")
class DetrConfig(DetectionConfig):
    """DETR as published, on the map of one `level`; `nothing_weight` is what a query without a target counts.

    `layer_losses`: every decoder layer learns. `chained_norm` is for models that transformers trained so: its layers go
    on from normed queries then. `dropout` is that of what layers add; `attention_dropout` and `activation_dropout`,
    0.1 too in the authors' code, are 0 in transformers'. `masks` adds DETR's mask head, on finer levels.
    """

    level: int = -1
    channels: PositiveInt = 256
    num_heads: PositiveInt = 8
    mlp_channels: PositiveInt = 2048
    encoder_layers: PositiveInt = 6
    decoder_layers: PositiveInt = 6
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    attention_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    activation_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    nothing_weight: NonNegativeFloat = 0.1
    layer_losses: bool = True
    chained_norm: bool = False

    def reads_all(self) -> bool:
        """One level, and with masks the three below it at most."""
        return False

    def build(self, levels: tuple[Level, ...]) -> "Detr":
        """A DETR on one of these levels; UserError where it isn't there, or masks lack a finer one."""
        return Detr(self, levels)


class Detr(DetectionHead):
    """A map -> `logits` (B, Q, K + 1), the last class for nothing, and `boxes_cxcywh` (B, Q, 4)."""

    scores = "softmax"
    frame = "picture"
    config: DetrConfig

    def __init__(self, config: DetrConfig, levels: tuple[Level, ...]) -> None:
        super().__init__(config, levels)
        if not -len(levels) <= config.level < len(levels):
            raise UserError(f"detr reads level {config.level}, but there are {len(levels)} levels")
        if config.channels % config.num_heads or config.channels % 4:
            raise UserError(f"detr's channels must divide by 4 and by its heads: {config.channels}, {config.num_heads}")
        self.level = config.level % len(levels)
        self.every = config.layer_losses
        width = config.channels
        shape = Shape(
            width,
            config.num_heads,
            config.mlp_channels,
            config.dropout,
            config.attention_dropout,
            config.activation_dropout,
        )
        self.input_projection = nn.Conv2d(levels[self.level].channels, width, kernel_size=1)
        self.query_position_embeddings = nn.Embedding(config.num_queries, width)
        self.encoder = Encoder(shape, config.encoder_layers)
        self.decoder = Decoder(shape, config.decoder_layers, chained_norm=config.chained_norm)
        self.class_labels_classifier = nn.Linear(width, self.num_classes + 1)
        self.bbox_predictor = Mlp(width, width, 4, layers=3)
        self.mask_head: MaskHead | None = None
        if config.masks:
            finer = [each.channels for each in levels[: self.level]][::-1][:_FINER]
            if not finer:
                raise UserError("masks of a detr need a level finer than the one it reads: give the backbone more")
            self.mask_head = MaskHead(width, config.num_heads, finer)
            self.bbox_attention = BoxAttention(width, config.num_heads)

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """features: (B, C_i, h_i, w_i), finest first -> logits and boxes of all queries, of each layer in training;
        with masks `masks` (B, Q, H, W), or in training `matched_masks` of the last layer's matched queries.
        """
        projected = self.input_projection(features[self.level])
        valid = valid_cells(batch, (projected.shape[-2], projected.shape[-1]))
        everywhere = valid
        if everywhere is None:
            everywhere = torch.ones(1, *projected.shape[-2:], dtype=torch.bool, device=projected.device)
        precise = torch.promote_types(projected.dtype, torch.float32)
        positions = sine_positions(everywhere, projected.shape[1], centred=False, dtype=precise)
        places = positions.to(projected.dtype).flatten(2).transpose(1, 2)  # (B or 1, N, C)
        seen = None if valid is None else valid.flatten(1)[:, None, None]  # (B, 1, 1, N)
        memory = self.encoder(projected.flatten(2).transpose(1, 2), places, seen)
        queries = self.query_position_embeddings.weight.to(memory.dtype)
        states = self.decoder(queries, memory, places, seen, every=self.training and self.every)
        outputs = self._read_off(states)
        if self.mask_head is None:
            return outputs
        finer = features[: self.level][::-1][:_FINER]
        return outputs | self._masks(self.mask_head, states[-1], memory, seen, [projected, *finer], outputs, batch)

    def label_losses(self, logits: Tensor, boxes: Tensor, matches: Matches, targets: Targets, number: Tensor) -> Tensor:
        """logits: (L, B, Q, K + 1) -> (L,): weighted mean cross-entropy of all queries."""
        return cross_entropy(logits, matches, targets, nothing=self.config.nothing_weight)

    def _read_off(self, states: Tensor) -> Outputs:
        """states: (L, B, Q, C) -> what each layer says, in one pass."""
        logits, boxes = self.class_labels_classifier(states), self.bbox_predictor(states).sigmoid()
        outputs = {"logits": logits[-1], "boxes_cxcywh": boxes[-1]}
        return outputs if len(states) == 1 else {**outputs, "layer_logits": logits, "layer_boxes": boxes}

    def _masks(
        self,
        head: MaskHead,
        queries: Tensor,
        memory: Tensor,
        seen: Tensor | None,
        maps: list[Tensor],
        outputs: Outputs,
        batch: Batch,
    ) -> Outputs:
        """Logits of all queries (B, Q, C); where there are targets to learn, of the few that are matched with them."""
        attention = self.bbox_attention(queries, memory, seen).unflatten(-1, maps[0].shape[-2:])  # (B, Q, heads, h, w)
        if self.training and "targets" in batch:
            logits, boxes = (full_precision(outputs[name])[None] for name in ("logits", "boxes_cxcywh"))
            matches = self.match(logits, boxes, self.read_targets(batch, logits), batch)
            pictures = matches.pictures
            return {"matched_masks": head(maps[0], attention[pictures, matches.queries[0]], maps[1:], pictures)}
        count, most = queries.shape[:2]
        pictures = torch.arange(count, device=queries.device).repeat_interleave(most)
        masks = head(maps[0], attention.flatten(0, 1), maps[1:], pictures)
        return {"masks": masks.unflatten(0, (count, most))}
