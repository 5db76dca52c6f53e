"""A small CLIP of open_clip's, with weights that carry a signal, and ours with the same ones."""

from typing import Any, NamedTuple

import open_clip
import pytest
import torch
from torch import nn

import vitdense
from vitdense.benchmarking.suite.maps import enliven
from vitdense.benchmarking.suite.zero_shot import text_tensors
from vitdense.contracts import HEADS
from vitdense.model import Model

SIDE, DIM = 48, 24


class Twins(NamedTuple):
    ours: Model
    theirs: Any


def make_twins() -> Twins:
    """Both in eval mode, towers of three and two blocks, pictures of 48 x 48."""
    vision = open_clip.CLIPVisionCfg(layers=3, width=48, head_width=16, patch_size=16, image_size=SIDE)
    text = open_clip.CLIPTextCfg(width=32, heads=2, layers=2)
    theirs = enliven(open_clip.CLIP(DIM, vision, text)).eval()
    with torch.no_grad():
        nn.init.constant_(theirs.get_parameter("logit_scale"), 2.5)
    state = theirs.state_dict()
    tower = {key: tensor for key, tensor in state.items() if key.startswith("visual.")}
    small: Any = {"embed_dim": 48, "depth": 3, "num_heads": 3, "image_size": SIDE, "activation": "gelu"}
    backbone = vitdense.create_backbone("clip_base_patch16", weights=tower, **small)
    text_options = {"name": "clip_text_base", "width": 32, "depth": 2, "num_heads": 2}
    head = HEADS.create("clip", {"text": text_options, "dim": DIM}).build_for(backbone)
    head.load_state_dict({**text_tensors(state), "image_proj.weight": state["visual.proj"].T})
    return Twins(Model(backbone, head).eval(), theirs)


@pytest.fixture(scope="session")
def twins() -> Twins:
    return make_twins()
