"""One table of names reads both ways: numbers, parts, rests of keys, and what a key may not be."""

import pytest
import torch
from torch import Tensor

from vitdense.errors import WeightsError
from vitdense.weights.rows import Change, Row, fits, render, translate


def tensors(*keys: str) -> dict[str, Tensor]:
    return {key: torch.randn(6, 2, generator=torch.Generator().manual_seed(i)) for i, key in enumerate(keys)}


def round_trip(theirs: dict[str, Tensor], *table: Row) -> dict[str, Tensor]:
    """Ours, after it was seen that theirs come back from it as they were."""
    ours = translate(theirs, table, "in")
    assert not ours.strange
    back = translate(ours.state, table, "out")
    assert not back.strange
    assert back.state.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in back.state.items())
    return ours.state


@pytest.mark.parametrize(
    ("template", "key", "values"),
    [
        ("a.{i}.b", "a.12.b", {"i": "12"}),
        ("a.{i+1}.b", "a.12.b", {"i": "11"}),
        ("a.{2i+1}.{j}.*", "a.7.0.x.y", {"i": "3", "j": "0", "*": "x.y"}),
        ("a.{i}.b.{i}", "a.3.b.3", {"i": "3"}),
        ("stage{last}.w", "stage3.w", {"last": "3"}),
    ],
)
def test_templates_fit_and_render_back(template: str, key: str, values: dict[str, str]) -> None:
    assert fits(template, key, 3) == values
    assert render(template, values, 3) == key


@pytest.mark.parametrize(
    ("template", "key"),
    [
        ("a.{i}.b", "a.x.b"),
        ("a.{i}.b", "a.1.bb"),
        ("a.{i}.b", "za.1.b"),
        ("a.{i+1}.b", "a.0.b"),
        ("a.{2i+1}.b", "a.4.b"),
        ("a.{i}.b.{i}", "a.3.b.4"),
        ("a.*", "a."),
        ("a.b", "a-b"),
        ("stage{last}.w", "stage2.w"),
    ],
)
def test_templates_fit_nothing_else(template: str, key: str) -> None:
    assert fits(template, key, 3) is None


def test_numbers_follow_from_each_other() -> None:
    ours = round_trip(tensors("f.1.0.w", "f.3.5.w", "f.2.r"), Row("f.{2i+1}.{j}.*", "s.{i}.b.{j}.*"), Row("f.2.r", "r"))
    assert ours.keys() == {"s.0.b.0.w", "s.1.b.5.w", "r"}


def test_parts_are_joined_in_their_order_and_parted_again() -> None:
    theirs = tensors("1.v.w", "1.q.w", "1.k.w")
    table = [Row(f"{{i}}.{name}.*", "{i}.qkv.*", part=(k, 3)) for k, name in enumerate("qkv")]
    ours = round_trip(theirs, *table)
    assert torch.equal(ours["1.qkv.w"], torch.cat([theirs["1.q.w"], theirs["1.k.w"], theirs["1.v.w"]]))


def test_one_of_theirs_may_be_cut_into_several_of_ours() -> None:
    theirs = tensors("in_proj_weight")
    ours = round_trip(theirs, Row("in_proj_*", "q.*", cut=(0, 1, 3)), Row("in_proj_*", "kv.*", cut=(1, 3, 3)))
    assert torch.equal(ours["q.weight"], theirs["in_proj_weight"][:2])
    assert torch.equal(ours["kv.weight"], theirs["in_proj_weight"][2:])


def test_changes_are_undone_on_the_way_out() -> None:
    theirs = tensors("a.w")
    turn = Change(lambda tensor: tensor.mT, lambda tensor: tensor.mT)
    assert round_trip(theirs, Row("a.*", "b.*", change=turn))["b.w"].shape == (2, 6)


def test_the_first_of_several_names_is_written_and_all_are_read() -> None:
    table = (Row(("new.{i}.w", "old.{i}.w"), "w.{i}"),)
    ours = translate(tensors("old.1.w", "new.2.w"), table, "in").state
    assert ours.keys() == {"w.1", "w.2"}
    assert translate(ours, table, "out").state.keys() == {"new.1.w", "new.2.w"}


def test_a_spare_name_yields_and_is_written_besides() -> None:
    table = (Row("norm{i}.*", "norms.{i}.*"), Row("norm.*", "norms.{last}.*", spare=True), Row("layers.*", "layers.*"))
    theirs = tensors("norm.w", "norm2.w", "layers.2.w")
    done = translate(theirs, table, "in")
    assert done.spare == ["norm.w"]
    assert torch.equal(done.state["norms.2.w"], theirs["norm2.w"])
    del theirs["norm2.w"]
    ours = translate(theirs, table, "in").state
    assert torch.equal(ours["norms.2.w"], theirs["norm.w"])
    written = translate(ours, table, "out").state
    assert written.keys() == {"norm.w", "norm2.w", "layers.2.w"}


def test_keys_without_a_row_or_without_their_other_parts_are_strange() -> None:
    table = tuple(Row(name, "qkv", part=(k, 3)) for k, name in enumerate("qkv"))
    done = translate(tensors("q", "v", "x"), table, "in")
    assert done.strange == ["x", "q", "v"]
    assert not done.state


def test_two_keys_for_one_name_are_refused() -> None:
    with pytest.raises(WeightsError, match="new and old are both w"):
        translate(tensors("new", "old"), (Row(("new", "old"), "w"),), "in")


def test_what_doesnt_divide_into_parts_is_refused() -> None:
    table = (Row("a", "q", cut=(0, 1, 4)), Row("a", "kv", cut=(1, 4, 4)))
    with pytest.raises(WeightsError, match=r"a \(6, 2\) doesn't divide into 4 parts"):
        translate(tensors("a"), table, "in")
