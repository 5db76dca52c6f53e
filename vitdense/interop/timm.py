"""The face of timm's `features_only` models on our backbones: a list of maps, and `feature_info`."""

from timm.models import FeatureInfo
from torch import Tensor, nn

from vitdense.contracts import Backbone


class FeaturesOnly(nn.Module):
    """For code that reads `feature_info.channels()` and `.reduction()`; maps are (B, C, H, W), as `output_fmt` says."""

    output_fmt = "NCHW"

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        info = [
            {"num_chs": level.channels, "reduction": level.stride, "module": f"backbone.levels.{i}"}
            for i, level in enumerate(backbone.levels)
        ]
        self.feature_info = FeatureInfo(info, out_indices=tuple(range(len(info))))

    def forward(self, images: Tensor) -> list[Tensor]:
        """images: (B, C, H, W), normalised -> [(B, C_i, ceil(H / s_i), ceil(W / s_i))], finest first."""
        maps: list[Tensor] = self.backbone(images)
        return maps
