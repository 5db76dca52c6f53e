"""D-FINE: RT-DETR whose boxes move by distributions, each layer learning from the last one (Peng et al. 2024,
https://arxiv.org/abs/2410.13842); parameters are named as in transformers' DFineModel."""

import torch
from torch import Tensor, nn

from heads.detection.matching import Matches
from heads.detection.targets import Targets
from heads.rtdetr.config import RtDetrConfig
from heads.rtdetr.decoder import Refined
from heads.rtdetr.distribution import DistributionDecoder, distances
from heads.rtdetr.distribution_losses import decoupled_distillation, fine_grained_localisation
from heads.rtdetr.head import RtDetr
from heads.rtdetr.proposals import Proposals
from vitdense.contracts import Level, Outputs
from vitdense.ops.resizing import full_precision


class DFine(RtDetr):
    """As RT-DETR; `layer_logits` and `layer_boxes` begin with what the first layer says before any distribution.

    In training also `layer_corners` (L - 1, B, Q, 4 * (bins + 1)) and `layer_origins` (B, Q, 4), the boxes that the
    distributions move, and the same of denoising queries.
    """

    def __init__(self, config: RtDetrConfig, levels: tuple[Level, ...]) -> None:
        self.distribution = config.distribution
        super().__init__(config, levels)
        self.shifted = config.distribution.pairs == "shifted"

    def projection(self, config: RtDetrConfig) -> nn.Module:
        """Nothing where the widths agree."""
        return nn.Identity() if config.encoder_hidden_dim == config.hidden_dim else super().projection(config)

    def make_decoder(self, config: RtDetrConfig) -> nn.Module:
        """The layers that refine distributions."""
        return DistributionDecoder(config, self.num_classes)

    def outputs(self, refined: Refined, proposals: Proposals, noisy: int, *, noised: bool) -> Outputs:
        """With the distributions in training."""
        found = super().outputs(refined, proposals, noisy, noised=noised)
        assert refined.corners is not None
        assert refined.origins is not None
        if self.training:
            found |= {"layer_corners": refined.corners[:, :, noisy:], "layer_origins": refined.origins[:, noisy:]}
        if noised:
            found["denoising_corners"] = refined.corners[:, :, :noisy]
            found["denoising_origins"] = refined.origins[:, :noisy]
        return found

    def bounded(self, boxes: Tensor) -> Tensor:
        """boxes: (..., 4) -> the same in 0..1, from which distributions may lead away."""
        return full_precision(boxes).clamp(0, 1)

    def stack(self, outputs: Outputs, kind: str) -> tuple[Tensor, Tensor]:
        """All layers; where pairs are shifted, the layer is left out that no distribution would be paired with."""
        logits, boxes = super().stack(outputs, kind)
        if not self.shifted:
            return logits, boxes
        if kind == "denoising":
            return logits[:-1], boxes[:-1]
        return torch.cat([logits[:-2], logits[-1:]]), torch.cat([boxes[:-2], boxes[-1:]])

    def distribution_losses(
        self, outputs: Outputs, kind: str, boxes: Tensor, matches: Matches, targets: Targets, number: Tensor
    ) -> dict[str, Tensor]:
        """`loss_fgl` of all distributions and `loss_ddf` of all but the last one, which the others learn from; boxes:
        (L, B, Q, 4) of the stack whose names they share.
        """
        own, suffix = self.distribution, "" if kind == "layer" else "_dn"
        corners = _by_side(full_precision(outputs[f"{kind}_corners"]))
        teacher, teacher_logits = corners[-1], full_precision(outputs[f"{kind}_logits"])[-1]
        origins = full_precision(outputs[f"{kind}_origins"])
        students, first = len(corners) - 1, 0 if self.shifted else 1
        if self.shifted and kind == "layer":
            corners = corners[:-1]
        boxes, graded = boxes[first:], _from(matches, first, len(corners))
        values = distances(own, corners)
        localised = fine_grained_localisation(
            corners, origins, boxes[: len(corners)], graded, targets, number, values, own.reg_scale
        )
        distilled = decoupled_distillation(
            corners[:students],
            teacher,
            teacher_logits,
            boxes[:students],
            _from(matches, first, students),
            targets,
            own.ddf_temperature,
        )
        last = len(matches.queries) - 1
        found = {}
        for name, layers in (("loss_fgl", own.fgl_weight * localised), ("loss_ddf", own.ddf_weight * distilled)):
            for index, value in enumerate(layers, start=first):
                found[name + suffix + ("" if index == last and not suffix else f"_{index}")] = value
        return found


def _from(matches: Matches, first: int, count: int) -> Matches:
    """The pairs of `count` layers from the first one wanted."""
    chosen = slice(first, first + count)
    return Matches(matches.pictures, matches.queries[chosen], matches.targets[chosen])


def _by_side(corners: Tensor) -> Tensor:
    """corners: (L, B, Q, 4 * n) -> (L, B, Q, 4, n)."""
    return corners.view(*corners.shape[:-1], 4, corners.shape[-1] // 4)
