"""For every registered backbone: what is written for a library is recognised again, and reads back as it was."""

import pytest
import torch
from torch import Tensor

from vitdense.contracts import BACKBONES, BackboneConfig
from vitdense.errors import UserError
from vitdense.weights.dialect import detect
from vitdense.weights.exporting import Names, choose_dialect
from vitdense.weights.families import DIALECTS
from vitdense.weights.rows import translate


def on_paper(config: BackboneConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return config.build().state_dict()


def writable(name: str, library: Names) -> bool:
    try:
        choose_dialect(BACKBONES.create(name), library)
    except UserError:
        return False
    return True


LIBRARIES: tuple[Names, ...] = ("timm", "transformers")
PAIRS = [(name, library) for name in BACKBONES.names() for library in LIBRARIES if writable(name, library)]


@pytest.mark.parametrize(("name", "library"), PAIRS)
def test_what_is_written_is_recognised_and_read_back(name: str, library: Names) -> None:
    config = BACKBONES.create(name)
    dialect, export = choose_dialect(config, library)
    ours = on_paper(config)
    written = translate(export.finish(ours), dialect.table, "out").state
    found, root = detect(written, DIALECTS, name)
    assert (found.publisher, root) == (library, "")
    back, left_out = found.convert(written, root)
    assert not back.strange
    for key, tensor in back.state.items():
        if key != "pos_embed":  # which may have rows for registers
            assert (key, tensor.shape) == (key, ours[key].shape)
    assert all(key.startswith("norms.") for key in ours.keys() - back.state.keys())
    assert all("norm" in key or key.endswith("mask_token") for key in left_out)


def test_plain_presets_can_be_written_for_both() -> None:
    plain = [*BACKBONES.names("vit_*_patch*"), *BACKBONES.names("deit_*"), *BACKBONES.names("swin_*")]
    assert len(plain) > 20
    assert all((name, library) in PAIRS for name in plain for library in LIBRARIES)
