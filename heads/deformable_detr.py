"""Deformable DETR: queries that read a few points of several levels (Zhu et al. 2021,
https://arxiv.org/abs/2010.04159); parameters are named as in transformers' DeformableDetrForObjectDetection."""

import math
from dataclasses import replace

import torch
from pydantic import NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from heads.deformable.grids import Grids
from heads.deformable.proposals import ProposalHead, Proposals
from heads.deformable.pyramid import Pyramid
from heads.deformable.transformer import Decoder, Encoder, Queries, moved
from heads.detection.boxes import inverse_sigmoid
from heads.detection.denoising import DenoisingConfig, count_groups, denoise, denoising_matches
from heads.detection.head import DetectionConfig, DetectionHead
from heads.detection.losses import count_targets, focal
from heads.detection.masks import QueryMasks
from heads.detection.matching import MatchCosts, Matches
from heads.detection.mlp import Mlp
from heads.detection.targets import Targets
from heads.detection.transformer import Shape
from vitdense.contracts import HEADS, Batch, Level, Outputs
from vitdense.errors import UserError
from vitdense.ops.resizing import full_precision


@HEADS.register("deformable_detr")
@HEADS.register(
    "dino",
    with_box_refine=True,
    two_stage=True,
    look_forward_twice=True,
    mixed_queries=True,
    denoising={"queries": 100},
    num_queries=900,
    mlp_channels=2048,
    dropout=0.0,
    label_weight=1.0,
)
class DeformableDetrConfig(DetectionConfig):
    """Deformable DETR as published. Levels beyond those given are made by convolutions, `num_feature_levels` in all;
    `skip_levels` of the finest are not read, such as that of stride 4, which holds three quarters of all cells.

    `with_box_refine`: each decoder layer corrects the boxes of the one before; `two_stage`: the encoder's cells propose
    the first boxes. Of DINO (https://arxiv.org/abs/2203.03605): `look_forward_twice` lets a layer's loss reach the
    boxes it corrects, `mixed_queries` takes positions from the proposals, by their best class, and learns the content,
    and `denoising.queries` adds queries made of targets with noise. The preset `dino` has them all.
    """

    num_queries: PositiveInt = 300
    matcher: MatchCosts = MatchCosts(label=2.0)
    label_weight: float = 2.0
    dropout: float = 0.1
    channels: PositiveInt = 256
    num_heads: PositiveInt = 8
    mlp_channels: PositiveInt = 1024
    encoder_layers: PositiveInt = 6
    decoder_layers: PositiveInt = 6
    skip_levels: NonNegativeInt = 0
    num_feature_levels: PositiveInt = 4
    encoder_points: PositiveInt = 4
    decoder_points: PositiveInt = 4
    focal_alpha: float = 0.25
    with_box_refine: bool = False
    two_stage: bool = False
    look_forward_twice: bool = False
    mixed_queries: bool = False
    denoising: DenoisingConfig = DenoisingConfig(queries=0)

    @model_validator(mode="after")
    def _check(self) -> "DeformableDetrConfig":
        if self.channels % 32 or self.channels % self.num_heads:
            raise ValueError(f"channels {self.channels} must divide by 32, for group norm, and by num_heads")
        if self.two_stage and not self.with_box_refine:
            raise ValueError("two_stage needs with_box_refine: true")
        if self.mixed_queries and not self.two_stage:
            raise ValueError("mixed_queries needs two_stage: true")
        if self.denoising.queries and not self.two_stage:
            raise ValueError("denoising needs two_stage: true")
        if self.look_forward_twice and not self.with_box_refine:
            raise ValueError("look_forward_twice needs with_box_refine: true")
        return self

    def reads_all(self) -> bool:
        """All but those that are skipped."""
        return self.skip_levels == 0

    def build(self, levels: tuple[Level, ...]) -> "DeformableDetr":
        """A Deformable DETR for these levels; UserError where there are more than `num_feature_levels`."""
        return DeformableDetr(self, levels)


class DeformableDetr(DetectionHead):
    """Maps -> `logits` (B, Q, K) and `boxes_cxcywh` (B, Q, 4) in shares of the picture; in training those of all layers
    as well, and of two stages the first one's `proposal_logits` (B, S, K) and `proposal_boxes` (B, S, 4) of all cells.
    """

    config: DeformableDetrConfig
    scores = "sigmoid"
    frame = "picture"

    def __init__(self, config: DeformableDetrConfig, levels: tuple[Level, ...]) -> None:
        super().__init__(config, levels)
        if config.skip_levels >= len(levels):
            raise UserError(f"deformable_detr skips {config.skip_levels} levels, but there are {len(levels)}")
        levels = levels[config.skip_levels :]
        if len(levels) > config.num_feature_levels:
            raise UserError(
                f"deformable_detr has num_feature_levels {config.num_feature_levels}, but there are {len(levels)} "
                "levels: give skip_levels, backbone.out_indices, or more num_feature_levels"
            )
        count, width = config.num_feature_levels, config.channels
        shape = Shape(width, config.num_heads, config.mlp_channels, config.dropout)
        self.input_proj = Pyramid(levels, width, count=count)
        self.level_embed = nn.Parameter(torch.randn(count, width))
        self.encoder = Encoder(shape, config.encoder_layers, levels=count, points=config.encoder_points)
        self.decoder = Decoder(shape, config.decoder_layers, levels=count, points=config.decoder_points)
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
        if config.masks:
            self.query_masks = QueryMasks([width] * len(levels), width, width)
        self.given = len(levels)
        self.denoises = config.denoising.queries > 0
        if self.denoises:
            self.denoising_class_embed = nn.Embedding(self.num_classes + 1, width, padding_idx=self.num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As published: few things at first, in boxes of a tenth of the picture around where queries look."""
        for classes in self.class_embed:
            nn.init.constant_(classes.get_parameter("bias"), -math.log(99))
        for index, boxes in enumerate(self.bbox_embed):
            bias = boxes.get_parameter("layers.2.bias")
            nn.init.zeros_(boxes.get_parameter("layers.2.weight"))
            nn.init.zeros_(bias)
            if index == 0 and not self.config.two_stage:
                nn.init.constant_(bias.data[2:], -2.0)
        if not self.config.two_stage:
            nn.init.xavier_uniform_(self.reference_points.weight)
            nn.init.zeros_(self.reference_points.bias)

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """features: (B, C_i, h_i, w_i), finest first -> outputs as of the class."""
        maps = self.input_proj(features[self.config.skip_levels :])
        grids = Grids.of(maps, batch)
        cells = torch.cat([each.flatten(2).mT for each in maps], dim=1)  # (B, S, C)
        places = grids.positions(self.config.channels, cells)
        positions = torch.cat([each + level for each, level in zip(places, self.level_embed, strict=True)], dim=1)
        del maps, places
        cells = self.encoder(cells, positions.to(cells.dtype), grids)
        proposals = self._propose(cells, grids)
        start = self._start(len(cells), proposals)
        noisy = 0
        if self.training and self.denoises and "targets" in batch:
            start, noisy = self._with_noise(start, batch)
        hidden, boxes = self._decode(start, cells, grids)
        outputs = self._answer(hidden, boxes, noisy)
        if proposals is not None and self.training:
            outputs["proposal_logits"], outputs["proposal_boxes"] = proposals.logits, proposals.coords.sigmoid()
        if self.query_masks is not None:
            outputs |= self.mask_outputs(hidden[-1, :, noisy:], grids.maps(cells)[: self.given], batch)
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

    def _with_noise(self, start: Queries, batch: Batch) -> tuple[Queries, int]:
        """Denoising queries before the others, and how many they are."""
        assert self.first_stage is not None
        targets = self.read_targets(batch, start.references)
        classes, count = self.num_classes, start.content.shape[1]
        noise = denoise(targets, self.config.denoising, num_classes=classes, num_queries=count)
        content = self.denoising_class_embed(noise.labels).to(start.content.dtype)
        positions = self.first_stage.embed(inverse_sigmoid(noise.boxes))[..., : content.shape[-1]]
        noisy = (content, positions.to(start.positions.dtype), noise.boxes.to(start.references.dtype))
        plain = (start.content, start.positions, start.references)
        content, positions, references = (torch.cat(pair, dim=1) for pair in zip(noisy, plain, strict=True))
        return Queries(content, positions, references, noise.visible), len(noise)

    def _decode(self, start: Queries, cells: Tensor, grids: Grids) -> tuple[Tensor, Tensor]:
        """The queries (L, B, Q, C) and boxes (L, B, Q, 4) of the layers that are asked for."""
        if self.config.with_box_refine:
            twice = self.config.look_forward_twice
            return self.decoder.refine(start, cells, grids, self.bbox_embed, forward_twice=twice)
        hidden = self.decoder(start, cells, grids)
        if not self.training:
            hidden = hidden[-1:]
        return hidden, moved(start.references, self.bbox_embed[0](hidden))

    def _answer(self, hidden: Tensor, boxes: Tensor, noisy: int) -> Outputs:
        """Logits of queries (L, B, Q, C), and boxes (L, B, Q, 4); the first `noisy` of them apart."""
        refined = self.config.with_box_refine
        if not self.training:
            last = self.class_embed[len(hidden) - 1 if refined else 0]
            return {"logits": last(hidden[-1]), "boxes_cxcywh": boxes[-1]}
        if refined:
            logits = torch.stack([classes(each) for classes, each in zip(self.class_embed, hidden, strict=False)])
        else:
            logits = self.class_embed[0](hidden)
        found: Outputs = {}
        if noisy:
            found = {"denoising_logits": logits[:, :, :noisy], "denoising_boxes": boxes[:, :, :noisy]}
            logits, boxes = logits[:, :, noisy:], boxes[:, :, noisy:]
        return {
            "logits": logits[-1], "boxes_cxcywh": boxes[-1], "layer_logits": logits, "layer_boxes": boxes, **found
        }  # fmt: skip

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """As of every head; of two stages the first one's with `_enc_0` behind, whose scores tell things from nothing,
        whatever their class (`mixed_queries`: of their class); of layer i's denoising queries with `_dn_i`."""
        found = super().losses(outputs, batch)
        if "proposal_logits" in outputs:
            found |= self._proposal_losses(outputs, batch)
        if "denoising_logits" in outputs:
            logits, boxes = (full_precision(outputs[name]) for name in ("denoising_logits", "denoising_boxes"))
            targets, config = self.read_targets(batch, logits), self.config.denoising
            known = denoising_matches(targets, config, layers=len(logits))
            number = count_targets(targets) * max(1, count_groups(targets, config))
            found |= self.stack_losses(logits, boxes, known, targets, number, suffix="_dn")
        return found

    def _proposal_losses(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        logits, boxes = (full_precision(outputs[name])[None] for name in ("proposal_logits", "proposal_boxes"))
        targets = self.read_targets(batch, logits)
        if not self.config.mixed_queries:
            targets = replace(targets, labels=torch.zeros_like(targets.labels))
        matches = self.match(logits, boxes, targets, batch)
        return self.stack_losses(logits, boxes, matches, targets, count_targets(targets), suffix="_enc")

    def label_losses(self, logits: Tensor, boxes: Tensor, matches: Matches, targets: Targets, number: Tensor) -> Tensor:
        """The focal loss of independent classes."""
        return focal(logits, matches, targets, number, alpha=self.config.focal_alpha)
