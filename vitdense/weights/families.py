"""Every dialect that is known, in the order in which they are tried."""

from vitdense.weights import swin, vit
from vitdense.weights.dialect import Dialect

# Families of special signs before plain ones: timm's ViT, whose names are the plainest, comes last.
DIALECTS: tuple[Dialect, ...] = (*swin.DIALECTS, *vit.DIALECTS)
