"""For every registered backbone: what is written for a library is recognised again, and reads back as it was."""

import pytest
import timm
import torch
from torch import Tensor

from vitdense.backbones.vit_config import ViTConfig
from vitdense.contracts import BACKBONES, BackboneConfig
from vitdense.errors import UserError
from vitdense.weights import read_weights
from vitdense.weights.contents import Checkpoint, Weights
from vitdense.weights.dialect import detect
from vitdense.weights.exporting import Names, choose_dialect
from vitdense.weights.families import DIALECTS
from vitdense.weights.fitting import fit
from vitdense.weights.published import PUBLISHED
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


@pytest.mark.parametrize("name", BACKBONES.names())
def test_our_own_tensors_are_taken_as_they_are(name: str) -> None:
    """Our names are those of other libraries, whose networks are built in other ways: the preset must stand."""
    config = BACKBONES.create(name)
    ours = on_paper(config)
    weights = read_weights(ours, config)
    assert not weights.left_out
    assert {key: tensor.shape for key, tensor in weights.state.items()} == {k: t.shape for k, t in ours.items()}
    assert config.with_defaults(weights.options) == config


def test_plain_presets_can_be_written_for_both() -> None:
    plain = [*BACKBONES.names("vit_*_patch*"), *BACKBONES.names("deit_*"), *BACKBONES.names("swin_*")]
    assert len(plain) > 20
    assert all((name, library) in PAIRS for name in plain for library in LIBRARIES)


# Defaults that timm publishes, and its networks for presets whose defaults come from elsewhere.
THEIRS = {name: source[5:].split(".")[0] for name, source in PUBLISHED.items() if source.startswith("timm/")}
THEIRS |= {
    "clip_base_patch32": "vit_base_patch32_clip_224",
    "clip_base_patch16": "vit_base_patch16_clip_224",
    "clip_large_patch14": "vit_large_patch14_clip_224",
    "clip_huge_patch14": "vit_huge_patch14_clip_224",
    "siglip_base_patch16": "vit_base_patch16_siglip_224",
    "siglip_large_patch16": "vit_large_patch16_siglip_256",
    "siglip_so400m_patch14": "vit_so400m_patch14_siglip_224",
    "siglip2_base_patch16": "vit_base_patch16_siglip_224",
    "siglip2_large_patch16": "vit_large_patch16_siglip_256",
    "siglip2_so400m_patch14": "vit_so400m_patch14_siglip_224",
    "siglip2_base_patch32": "vit_base_patch32_siglip_256",
    "siglip2_so400m_patch16": "vit_so400m_patch16_siglip_256",
}


@pytest.mark.parametrize("name", THEIRS)
def test_timms_networks_of_full_size_fit_their_presets(name: str) -> None:
    config = BACKBONES.create(name)
    with torch.device("meta"):
        theirs = timm.create_model(THEIRS[name])
    state = theirs.state_dict()
    dialect, root = detect(state, DIALECTS, name)
    done, left_out = dialect.convert(state, root)
    told = dialect.options(Checkpoint(state, name), done.state)
    config = config.with_defaults({option: told[option] for option in told.keys() & type(config).model_fields})
    with torch.device("meta"):
        weights = Weights(done.state, name, dialect.family, dialect.architecture, left_out=tuple(left_out))
        fitting = fit(weights, config.build())
    assert {k: t.shape for k, t in fitting.state.items()} == {k: t.shape for k, t in fitting.wanted.items()}
    assert not fitting.resized
    if isinstance(config, ViTConfig):
        assert {each.num_heads for each in theirs.modules() if hasattr(each, "num_heads")} == {config.num_heads}


def test_timms_defaults_are_published() -> None:
    published = {f"timm/{name}" for name in timm.list_pretrained()}
    assert {source for source in PUBLISHED.values() if source.startswith("timm/")} <= published
