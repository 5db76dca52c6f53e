"""What the tests of backbones share: every structure of ours, narrow and shallow."""

from collections.abc import Callable

import pytest

from vitdense.backbones import SwinConfig
from vitdense.contracts import BACKBONES, BackboneConfig

Shrink = Callable[[str], BackboneConfig]


def shrunken(name: str) -> BackboneConfig:
    """The same structure, narrow and shallow."""
    kind, preset = BACKBONES.find(name)
    heads = preset["num_heads"]
    if issubclass(kind, SwinConfig):
        return BACKBONES.create(name, {"embed_dim": 4 * heads[0], "depths": (2, 2, 2, 2)})
    small = {"embed_dim": 4 * heads, "depth": 4, "image_size": 4 * preset["patch_size"]}
    if preset.get("window"):
        small |= {"window": 3, "global_blocks": (1, 3)}
    if "stem_layers" in preset:
        small |= {"stem_layers": (1,) * len(preset["stem_layers"]), "stem_width": 32}
    return BACKBONES.create(name, small)


@pytest.fixture
def shrink() -> Shrink:
    return shrunken
