"""Every dialect that is known, in the order in which they are tried."""

from vitdense.weights import beit, dinov2, dinov3, eva, sam, swin, vit
from vitdense.weights.dialect import Dialect

# Families of special signs before plain ones: timm's ViT, whose names are the plainest, comes last.
DIALECTS: tuple[Dialect, ...] = (
    *swin.DIALECTS,
    *beit.DIALECTS,
    *sam.DIALECTS,
    *dinov3.DIALECTS,
    *eva.DIALECTS,
    *dinov2.DIALECTS,
    *vit.DIALECTS,
)
