"""Deformable DETR: queries that read a few points of several levels (Zhu et al. 2021,
https://arxiv.org/abs/2010.04159); parameters are named as in transformers' DeformableDetrForObjectDetection."""

import math
from dataclasses import replace

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from heads.deformable.grids import Grids
from heads.deformable.proposals import ProposalHead, Proposals
from heads.deformable.pyramid import Pyramid
from heads.deformable.transformer import Decoder, Encoder, Queries, Sizes, moved
from heads.detection.head import DetectionConfig, DetectionHead
from heads.detection.losses import count_targets, focal
from heads.detection.matching import MatchCosts, Matches
from heads.detection.mlp import Mlp
from heads.detection.targets import Targets
from vitdense.contracts import HEADS, Batch, Level, Outputs
from vitdense.errors import UserError
from vitdense.ops.resizing import full_precision


@HEADS.register("deformable_detr")
class DeformableDETRConfig(DetectionConfig):
    """Deformable DETR as published. Levels beyond those given are made by convolutions, `num_feature_levels` in all.

    `with_box_refine`: each decoder layer corrects the boxes of the one before; `two_stage`: the encoder's cells propose
    the first boxes. Of DINO (https://arxiv.org/abs/2203.03605): `look_forward_twice` lets a layer's loss reach the
    boxes it corrects, `mixed_queries` takes positions from the proposals, by their best class, and learns the content.
    """

    num_queries: PositiveInt = 300
    matcher: MatchCosts = MatchCosts(label=2.0)
    label_weight: float = 2.0
    dropout: float = 0.1
    channels: PositiveInt = 256
    num_heads: PositiveInt = 8
    hidden: PositiveInt = 1024
    encoder_layers: PositiveInt = 6
    decoder_layers: PositiveInt = 6
    num_feature_levels: PositiveInt = 4
    encoder_points: PositiveInt = 4
    decoder_points: PositiveInt = 4
    focal_alpha: float = 0.25
    with_box_refine: bool = False
    two_stage: bool = False
    look_forward_twice: bool = False
    mixed_queries: bool = False

    @model_validator(mode="after")
    def _check(self) -> "DeformableDETRConfig":
        if self.channels % 32 or self.channels % self.num_heads:
            raise ValueError(f"channels {self.channels} must divide by 32, for group norm, and by num_heads")
        if self.two_stage and not self.with_box_refine:
            raise ValueError("two_stage needs with_box_refine: true")
        if self.mixed_queries and not self.two_stage:
            raise ValueError("mixed_queries needs two_stage: true")
        if self.look_forward_twice and not self.with_box_refine:
            raise ValueError("look_forward_twice needs with_box_refine: true")
        return self

    def build(self, levels: tuple[Level, ...]) -> "DeformableDETR":
        """A Deformable DETR for these levels; UserError where there are more than `num_feature_levels`."""
        return DeformableDETR(self, levels)


class DeformableDETR(DetectionHead):
    """Maps -> `logits` (B, Q, K) and `boxes_cxcywh` (B, Q, 4) in shares of the picture; in training those of all layers
    as well, and of two stages the first one's `proposal_logits` (B, S, K) and `proposal_boxes` (B, S, 4) of all cells.
    """

    config: DeformableDETRConfig
    scores = "sigmoid"
    frame = "picture"

    def __init__(self, config: DeformableDETRConfig, levels: tuple[Level, ...]) -> None:
        super().__init__(config, levels)
        if len(levels) > config.num_feature_levels:
            raise UserError(
                f"deformable_detr has num_feature_levels {config.num_feature_levels}, but there are {len(levels)} "
                "levels: give backbone.out_indices, or more num_feature_levels"
            )
        count, width = config.num_feature_levels, config.channels
        sizes = Sizes(width, config.num_heads, count, config.hidden, config.dropout)
        self.input_proj = Pyramid(levels, width, count=count)
        self.level_embed = nn.Parameter(torch.randn(count, width))
        self.encoder = Encoder(sizes, layers=config.encoder_layers, points=config.encoder_points)
        self.decoder = Decoder(sizes, layers=config.decoder_layers, points=config.decoder_points)
        heads = (config.decoder_layers if config.with_box_refine else 1) + config.two_stage
        self.class_embed = nn.ModuleList(nn.Linear(width, self.num_classes) for _ in range(heads))
        self.bbox_embed = nn.ModuleList(Mlp(width, width, 4, layers=3) for _ in range(heads))
        self.first_stage: ProposalHead | None = None
        self.query_position_embeddings: nn.Embedding | None = None
        if config.two_stage:
            self.first_stage = ProposalHead(width, mixed=config.mixed_queries)
        else:
            self.reference_points = nn.Linear(width, 2)
        if not config.two_stage or config.mixed_queries:
            learned = width if config.mixed_queries else 2 * width
            self.query_position_embeddings = nn.Embedding(config.num_queries, learned)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As published: few things at first, in boxes of a tenth of the picture around where queries look."""
        for classes in self.class_embed:
            nn.init.constant_(classes.bias, -math.log(99))
        for index, boxes in enumerate(self.bbox_embed):
            last = boxes.layers[-1]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            if index == 0 and not self.config.two_stage:
                nn.init.constant_(last.bias[2:].data, -2.0)
        if not self.config.two_stage:
            nn.init.xavier_uniform_(self.reference_points.weight)
            nn.init.zeros_(self.reference_points.bias)

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """features: (B, C_i, h_i, w_i), finest first -> outputs as of the class."""
        maps = self.input_proj(features)
        grids = Grids.of(maps, batch)
        cells = torch.cat([each.flatten(2).mT for each in maps], dim=1)  # (B, S, C)
        places = grids.positions(self.config.channels, cells)
        positions = torch.cat([each + level for each, level in zip(places, self.level_embed, strict=True)], dim=1)
        del maps, places
        cells = self.encoder(cells, positions.to(cells.dtype), grids)
        proposals = self._propose(cells, grids)
        start = self._start(len(cells), proposals)
        outputs = self._decode(start, cells, grids)
        if proposals is not None and self.training:
            outputs["proposal_logits"], outputs["proposal_boxes"] = proposals.logits, proposals.coords.sigmoid()
        return outputs

    def _propose(self, cells: Tensor, grids: Grids) -> Proposals | None:
        if self.first_stage is None:
            return None
        heads = (self.class_embed[-1], self.bbox_embed[-1])
        return self.first_stage.propose(cells, grids, *heads, self.config.num_queries)

    def _start(self, pictures: int, proposals: Proposals | None) -> Queries:
        """The decoder's queries: learned ones, or those made of proposals."""
        learned = None
        if self.query_position_embeddings is not None:
            learned = self.query_position_embeddings.weight.expand(pictures, -1, -1)  # (B, Q, C or 2C)
        if proposals is None:
            assert learned is not None
            positions, content = learned.chunk(2, dim=-1)
            return Queries(content, positions, self.reference_points(positions).sigmoid())
        assert self.first_stage is not None
        embedded, references = self.first_stage.embed(proposals.boxes), proposals.boxes.sigmoid()
        if learned is not None:
            return Queries(learned[:, : embedded.shape[1]], embedded, references)
        positions, content = embedded.chunk(2, dim=-1)
        return Queries(content, positions, references)

    def _decode(self, start: Queries, cells: Tensor, grids: Grids) -> Outputs:
        if self.config.with_box_refine:
            twice = self.config.look_forward_twice
            hidden, boxes = self.decoder.refine(start, cells, grids, self.bbox_embed, forward_twice=twice)
            own = list(self.class_embed)[: len(hidden)]
        else:
            hidden = self.decoder(start, cells, grids)
            if not self.training:
                hidden = hidden[-1:]
            boxes = moved(start.references, self.bbox_embed[0](hidden))
            own = [self.class_embed[0]] * len(hidden)
        if not self.training:
            return {"logits": own[-1](hidden[-1]), "boxes_cxcywh": boxes[-1]}
        logits = torch.stack([classes(each) for classes, each in zip(own, hidden, strict=True)])
        return {"logits": logits[-1], "boxes_cxcywh": boxes[-1], "layer_logits": logits, "layer_boxes": boxes}

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """As of every head, and of two stages the first one's with `_enc_0` behind, whose scores tell things from
        nothing, whatever their class (`mixed_queries`: of their class)."""
        found = super().losses(outputs, batch)
        if "proposal_logits" not in outputs:
            return found
        logits, boxes = (full_precision(outputs[name])[None] for name in ("proposal_logits", "proposal_boxes"))
        targets = self.read_targets(batch, logits)
        if not self.config.mixed_queries:
            targets = replace(targets, labels=torch.zeros_like(targets.labels))
        matches = self.match(logits, boxes, targets, batch)
        number = count_targets(targets)
        return found | self.stack_losses(logits, boxes, matches, targets, number, suffix="_enc")

    def label_losses(self, logits: Tensor, boxes: Tensor, matches: Matches, targets: Targets, number: Tensor) -> Tensor:
        """The focal loss of independent classes."""
        return focal(logits, matches, targets, number, alpha=self.config.focal_alpha)
