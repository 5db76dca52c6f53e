"""Every row, tiny: each peer computes what ours does with its weights, and another convention would be noticed."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import vitdense
from vitdense.benchmarking import ROWS, AbsentError, Conditions, Peer, Row, find_row
from vitdense.benchmarking.numerics import check_peer
from vitdense.benchmarking.suite.maps import MapsWork
from vitdense.benchmarking.suite.swin import SWIN_T, TINY, _timm, _timm_maps
from vitdense.errors import UserError

CONDITIONS = Conditions(tiny=True)
CASES = [pytest.param(row, peer, id=f"{row.name}-{peer.name}") for row in ROWS.values() for peer in row.peers]

# Peers whose weights no family of ours reads yet; take out what has come.
UNREAD = {
    ("vit_b16_forward", "open_clip"),
    ("vit_b16_train", "open_clip"),
    ("dinov2_s14_forward", "transformers"),
}


@pytest.fixture(autouse=True)
def _one_thread() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def absent(reason: AbsentError, *, unread: bool = False) -> None:
    """Skips, if what is absent is torchcodec, a backbone that is really not there, or a family that is not read."""
    if str(reason).startswith("torchcodec does not load"):
        pytest.skip(str(reason))
    named = re.fullmatch(r"there is no backbone '(\w+)' yet", str(reason))
    if not (unread and "is of no family that is known here" in str(reason)):
        assert named is not None, str(reason)
        assert named[1] not in vitdense.list_backbones()
    pytest.skip(str(reason))


@pytest.mark.parametrize(("row", "peer"), CASES)
def test_every_peer_agrees_with_ours(row: Row, peer: Peer) -> None:
    try:
        check = check_peer(peer, CONDITIONS)
    except AbsentError as reason:
        absent(reason, unread=(row.name, peer.name) in UNREAD)
    assert check.agrees, str(check)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_what_is_timed_of_ours_runs_at_its_batch(name: str) -> None:
    try:
        job = ROWS[name].ours(replace(CONDITIONS, batch=2))
    except AbsentError as reason:
        absent(reason)
    job.step()
    maps = [each for key, each in job.outcome().items() if key.startswith(("map", "logits", "images"))]
    assert {each.shape[0] for each in maps} == {2} or name in (
        "miou",
        "coco_eval",
        "matcher",
        "zero_shot_classifier",
        "clip_loss",
        "siglip_loss",
        "tiled_inference",
    )  # of all pictures together, or of texts, or of windows


def test_training_compares_every_gradient() -> None:
    pair = next(peer for peer in ROWS["swin_t_train"].peers if peer.name == "transformers").pair(CONDITIONS)
    compared = pair.theirs.outcome().keys() & pair.ours.outcome().keys()
    backbone = vitdense.create_backbone("swin_tiny", **TINY.options())
    assert {f"gradient of {name}" for name, _ in backbone.named_parameters()} < compared
    assert {"loss", "gradient of images", "map 0", "map 3"} < compared


def test_a_step_compares_in_bf16_too() -> None:
    peer = ROWS["vit_b16_train"].peers[0]
    check = check_peer(peer, replace(CONDITIONS, precision="bf16"))
    assert check.agrees, str(check)
    assert check.bound > 1e-3


@pytest.mark.parametrize("train", [False, True])
def test_another_convention_is_noticed(train: bool) -> None:
    work = MapsWork("swin_tiny", SWIN_T, TINY, train)
    peer = work.against("timm", "timm", _timm, _timm_maps, {"norm_maps": False})
    check = check_peer(peer, CONDITIONS)
    assert not check.agrees
    assert check.distance > 1e-2


def test_weights_that_dont_fit_are_no_comparison() -> None:
    work = MapsWork("swin_tiny", SWIN_T, TINY, train=False)
    peer = work.against("other", "torch", lambda size: nn.Linear(2, 2), _timm_maps)
    with pytest.raises(AbsentError, match=r"its weights don't fit ours: a mapping is of no family that is known here$"):
        peer.pair(CONDITIONS)


def test_training_steps_leave_gradients_and_inference_none() -> None:
    for name, grown in (("swin_t_forward", False), ("swin_t_train", True)):
        outcome = ROWS[name].ours(CONDITIONS).outcome()
        assert any(key.startswith("gradient") for key in outcome) == grown


def test_unknown_rows_are_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match="no benchmark row named 'swin_t_forwards'; did you mean 'swin_t_forward'"):
        find_row("swin_t_forwards")
    with pytest.raises(UserError, match="No module named 'no_such_package'"):
        find_row("no_such_package:ROW")
    with pytest.raises(UserError, match="'MIB' is no Row of toy_rows"):
        find_row("toy_rows:MIB")
    assert find_row("toy_rows:EASY").name == "easy"
