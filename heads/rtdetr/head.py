"""RT-DETR (Zhao et al. 2023, https://arxiv.org/abs/2304.08069; v2: Lv et al. 2024, https://arxiv.org/abs/2407.17140);
parameters are named as in transformers' RTDetrV2Model, those that choose queries below `selection`."""

import torch
from torch import Tensor, nn

from heads.detection import DetectionHead
from heads.detection.boxes import inverse_sigmoid
from heads.detection.denoising import count_groups, denoise, denoising_matches
from heads.detection.losses import count_targets, varifocal
from heads.detection.masks import QueryMasks
from heads.detection.matching import Matches
from heads.detection.targets import Targets
from heads.rtdetr.blocks import Projection
from heads.rtdetr.config import RtDetrConfig, chosen_levels
from heads.rtdetr.decoder import Decoder, Refined
from heads.rtdetr.encoder import HybridEncoder
from heads.rtdetr.proposals import Proposals, Selection
from vitdense.contracts import Batch, Level, Outputs
from vitdense.ops.deformable import Shapes
from vitdense.ops.resizing import full_precision


class RtDetr(DetectionHead):
    """Maps -> `logits` (B, Q, K) and `boxes_cxcywh` (B, Q, 4) of the canvas, padding included: RT-DETR looks past it.

    In training also `layer_logits` and `layer_boxes` (L, B, Q, ...) of all layers, `encoder_logits` and `encoder_boxes`
    (B, Q, ...) of the cells that queries came from, and where the batch has targets `denoising_logits` and
    `denoising_boxes` (L, B, D, ...).
    """

    frame = "canvas"
    label_loss = "loss_vfl"

    def __init__(self, config: RtDetrConfig, levels: tuple[Level, ...]) -> None:
        super().__init__(config, levels)
        self.varifocal = {"alpha": config.varifocal_alpha, "gamma": config.varifocal_gamma}
        self.chosen = chosen_levels(levels, config.num_levels)
        read = [levels[index] for index in self.chosen]
        inner, width = config.encoder_hidden_dim, config.hidden_dim
        self.encoder_input_proj = nn.ModuleList(Projection(level.channels, inner) for level in read)
        self.encoder = HybridEncoder(config, [level.stride for level in read])
        self.decoder_input_proj = nn.ModuleList(self.projection(config) for _ in read)
        for index in range(config.num_levels - len(read)):
            channels = width if index else inner
            coarser = Projection(channels, width, kernel_size=3, stride=2, eps=config.batch_norm_eps)
            self.decoder_input_proj.append(coarser)
        self.denoising = config.denoising
        self.denoises = config.denoising.queries > 0
        if self.denoises:
            self.denoising_class_embed = nn.Embedding(self.num_classes + 1, width, padding_idx=self.num_classes)
            nn.init.xavier_uniform_(self.denoising_class_embed.weight.data[:-1])
        self.selection = Selection(config, self.num_classes)
        self.decoder = self.make_decoder(config)
        if config.masks:
            self.query_masks = QueryMasks([inner] * len(read), width, width)

    def projection(self, config: RtDetrConfig) -> nn.Module:
        """What brings a map of the encoder to the decoder's width."""
        return Projection(config.encoder_hidden_dim, config.hidden_dim, eps=config.batch_norm_eps)

    def make_decoder(self, config: RtDetrConfig) -> nn.Module:
        """The layers that refine boxes."""
        return Decoder(config, self.num_classes)

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """features: (B, C_i, h_i, w_i), finest first, as many as there are levels."""
        chosen = zip(self.encoder_input_proj, self.chosen, strict=True)
        maps = self.encoder([project(features[index]) for project, index in chosen])
        memory, shapes = self._memory(maps)
        proposals: Proposals = self.selection(memory, shapes)
        queries, boxes, visible, noisy = proposals.queries.detach(), proposals.boxes.detach(), None, 0
        if self.training and self.denoises and "targets" in batch:
            targets = self.read_targets(batch, boxes)
            noise = denoise(targets, self.denoising, num_classes=self.num_classes, num_queries=boxes.shape[1])
            noisy, visible = len(noise), noise.visible
            queries = torch.cat([self.denoising_class_embed(noise.labels).to(queries.dtype), queries], dim=1)
            boxes = torch.cat([inverse_sigmoid(noise.boxes).sigmoid().to(boxes.dtype), boxes], dim=1)
        refined: Refined = self.decoder(queries, boxes, memory, shapes, visible)
        masks = self.mask_outputs(refined.queries[:, noisy:], maps, batch)
        return self.outputs(refined, proposals, noisy, noised=visible is not None) | masks

    def _memory(self, maps: list[Tensor]) -> tuple[Tensor, Shapes]:
        """Maps (B, C, h_i, w_i) -> all cells (B, S, C') of the decoder's levels, and their grids (h, w)."""
        found: list[Tensor] = []
        for index, project in enumerate(self.decoder_input_proj):
            source = maps[min(index, len(maps) - 1)] if index <= len(maps) else found[-1]
            found.append(project(source))
        shapes = [(each.shape[-2], each.shape[-1]) for each in found]
        return torch.cat([each.flatten(2).mT for each in found], dim=1), shapes

    def outputs(self, refined: Refined, proposals: Proposals, noisy: int, *, noised: bool) -> Outputs:
        """What the layers answer, the first `noisy` queries by themselves."""
        logits, boxes = refined.logits[:, :, noisy:], refined.boxes[:, :, noisy:]
        found = {"logits": logits[-1], "boxes_cxcywh": boxes[-1]}
        if self.training:
            found |= {"layer_logits": logits, "layer_boxes": boxes}
            found |= {"encoder_logits": proposals.logits, "encoder_boxes": proposals.boxes}
        if noised:
            found["denoising_logits"] = refined.logits[:, :, :noisy]
            found["denoising_boxes"] = refined.boxes[:, :, :noisy]
        return found

    # ---------------------------------------------------------------- losses

    def label_losses(self, logits: Tensor, boxes: Tensor, matches: Matches, targets: Targets, number: Tensor) -> Tensor:
        """logits: (L, B, Q, K), boxes: (L, B, Q, 4) -> (L,): varifocal losses."""
        return varifocal(logits, boxes, matches, targets, number, **self.varifocal)

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """As of every detector `loss_vfl`, `loss_bbox`, `loss_giou`, those of layer i before the last with `_i` behind;
        those of the encoder's proposals with `_encoder_0`, of layer i's denoising queries with `_dn_i`.
        """
        if "encoder_logits" not in outputs:
            return super().losses(outputs, batch)
        logits, boxes = self.stack(outputs, "layer")
        targets = self.read_targets(batch, logits)
        number = count_targets(targets)
        proposed = full_precision(outputs["encoder_logits"])[None], self.bounded(outputs["encoder_boxes"])[None]
        stacks = torch.cat([proposed[0], logits]), torch.cat([proposed[1], boxes])
        matches = self.match(*stacks, targets, batch)  # of proposals and layers at once: one copy to the host
        found = self.stack_losses(*proposed, matches.at(0), targets, number, "_encoder")
        own = Matches(matches.pictures, matches.queries[1:], matches.targets[1:])
        found |= self.stack_losses(logits, boxes, own, targets, number)
        found |= self.distribution_losses(outputs, "layer", boxes, own, targets, number)
        found |= self.mask_losses(outputs, own, targets, batch, number)
        if "denoising_logits" in outputs:
            logits, boxes = self.stack(outputs, "denoising")
            known = denoising_matches(targets, self.denoising, layers=len(logits))
            number = number * max(1, count_groups(targets, self.denoising))
            found |= self.stack_losses(logits, boxes, known, targets, number, "_dn")
            found |= self.distribution_losses(outputs, "denoising", boxes, known, targets, number)
        return found

    def stack(self, outputs: Outputs, kind: str) -> tuple[Tensor, Tensor]:
        """Logits (L, B, Q, K) and boxes (L, B, Q, 4) to learn from, of `layer` or `denoising` queries."""
        return full_precision(outputs[f"{kind}_logits"]), self.bounded(outputs[f"{kind}_boxes"])

    def bounded(self, boxes: Tensor) -> Tensor:
        """boxes: (..., 4) -> as losses see them."""
        return full_precision(boxes)

    def distribution_losses(
        self, outputs: Outputs, kind: str, boxes: Tensor, matches: Matches, targets: Targets, number: Tensor
    ) -> dict[str, Tensor]:
        """What there is to learn besides scores and boxes (L, B, Q, 4): nothing here."""
        return {}
