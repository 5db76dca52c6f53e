"""Every dialect that is known, in the order in which they are tried."""

from vitdense.weights import beit, clip, dinov2, dinov3, eva, hybrid, sam, siglip, swin, swin_v2, video, vit
from vitdense.weights.dialect import Dialect

# Families of special signs before plain ones: timm's ViT, whose names are the plainest, comes last.
DIALECTS: tuple[Dialect, ...] = (
    *swin_v2.DIALECTS,
    *swin.DIALECTS,
    *hybrid.DIALECTS,
    *video.DIALECTS,
    *beit.DIALECTS,
    *sam.DIALECTS,
    *dinov3.DIALECTS,
    *eva.DIALECTS,
    *dinov2.DIALECTS,
    *clip.DIALECTS,
    *siglip.DIALECTS,
    *vit.DIALECTS,
)
