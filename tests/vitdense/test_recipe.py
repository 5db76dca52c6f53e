"""The recipe loader: merging, and every message it can give."""

import re
from pathlib import Path

import pytest

from vitdense.errors import RecipeError
from vitdense.recipe import Recipe, load_recipe

GOOD = """
backbone: {name: swin_nano, drop_path: 0.1}
head: {name: upernet, channels: 32}
data: {name: shapes, batch_size: 8}
optim: {lr: 1e-3}
schedule: {steps: 100, warmup: 10}
"""


def write(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def load(folder: Path, text: str, *overrides: str) -> Recipe:
    return load_recipe(write(folder, text), overrides)


def fault(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(folder, text, *overrides)
    return str(caught.value)


def test_a_good_recipe_is_typed(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD)
    assert recipe.name == "recipe"
    assert recipe.optim.lr == 1e-3
    assert recipe.names == {"backbone": "swin_nano", "head": "upernet", "data": "shapes", "metric": "miou"}
    assert recipe.run_dir == Path("runs/recipe")


def test_fragments_stand_under_the_recipe_and_overrides_on_top(tmp_path: Path) -> None:
    write(tmp_path, "optim: {lr: 1.0, weight_decay: 0.5}\nschedule: {steps: 5}", "a.yaml")
    write(tmp_path, "optim: {weight_decay: 0.25, layer_decay: 0.5}", "b.yaml")
    recipe = load(tmp_path, "base: [a.yaml, b.yaml]\n" + GOOD, "schedule.steps=77")
    assert (recipe.optim.lr, recipe.optim.weight_decay, recipe.optim.layer_decay) == (1e-3, 0.25, 0.5)
    assert recipe.schedule.steps == 77


def test_the_resolved_recipe_loads_to_the_same(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD, "adapter=null")
    again = load_recipe(write(tmp_path, recipe.to_yaml(), "resolved.yaml"))
    assert again.model_dump() == recipe.model_dump()
    assert again.to_yaml() == recipe.to_yaml()


def test_all_faults_are_said_at_once_with_file_line_and_nearest_name(tmp_path: Path) -> None:
    text = """
backbone: {name: swin_nno}
head:
  name: upernet
  chanels: 256
data: {name: shapes, batch_size: many}
schedule: {steps: 100, warmup: -2}
optimm: {lr: 1}
"""
    message = fault(tmp_path, text, "engine.ema=2")
    path = tmp_path / "recipe.yaml"
    assert f"{path}: 6 faults" in message
    assert f"{path}:2: backbone.name: no backbone named 'swin_nno'; did you mean 'swin_nano'" in message
    assert f"{path}:5: head.chanels: unknown key, did you mean 'channels'?; allowed: " in message
    assert f"{path}:6: data.batch_size: input should be a valid integer" in message
    assert "given 'many'" in message
    assert f"{path}:7: schedule.warmup: input should be greater than or equal to 0, given -2" in message
    assert f"{path}:8: optimm: unknown section, did you mean 'optim'?; allowed: backbone, adapter" in message
    assert "command line: engine.ema: input should be less than 1, given 2" in message


def test_a_fault_in_a_fragment_names_the_fragment(tmp_path: Path) -> None:
    write(tmp_path, "optim:\n  momentun: 0.9", "a.yaml")
    assert f"{tmp_path / 'a.yaml'}:2: optim.momentun: unknown key" in fault(tmp_path, "base: a.yaml\n" + GOOD)


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    assert "schedule: missing section" in fault(tmp_path, GOOD.replace("schedule", "#"))


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    assert "schedule.steps: missing key" in fault(tmp_path, GOOD.replace("steps: 100, ", ""))


def test_a_section_that_is_no_mapping_is_named(tmp_path: Path) -> None:
    assert "optim: expected a mapping, given 3" in fault(tmp_path, GOOD.replace("{lr: 1e-3}", "3"))


def test_a_section_without_a_name_is_named(tmp_path: Path) -> None:
    message = fault(tmp_path, GOOD.replace("name: upernet, ", ""))
    assert "head.name: expected the name of a head, given None" in message


def test_a_choice_lists_what_is_allowed(tmp_path: Path) -> None:
    message = fault(tmp_path, GOOD, "engine.precision=fp8")
    assert "engine.precision: input should be 'auto', '32-true', 'bf16-mixed' or '16-mixed', given 'fp8'" in message


def test_accumulation_must_divide_the_batch(tmp_path: Path) -> None:
    message = fault(tmp_path, GOOD, "engine.accumulate=3")
    assert "command line: engine.accumulate: must divide data.batch_size (8), given 3" in message


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=re.escape(f"no recipe at {tmp_path / 'nowhere.yaml'}")):
        load_recipe(tmp_path / "nowhere.yaml")


def test_an_absent_fragment_is_named_with_the_recipe(tmp_path: Path) -> None:
    assert "(named in `base:` of " in fault(tmp_path, "base: gone.yaml\n" + GOOD)


def test_fragments_go_one_level_deep(tmp_path: Path) -> None:
    write(tmp_path, "base: other.yaml", "a.yaml")
    assert "a fragment can't have a `base:` of its own" in fault(tmp_path, "base: a.yaml\n" + GOOD)


def test_an_override_without_a_value_is_refused(tmp_path: Path) -> None:
    assert "command line: 'optim.lr' is no override; expected key.sub=value" in fault(tmp_path, GOOD, "optim.lr")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1, 2", "not readable as YAML"),
        ("optim: {lr: 1}\noptim: {lr: 2}", "duplicate key"),
        ("- a\n- b", "expected a mapping of sections"),
        ("", "expected a mapping of sections"),
        ("backbone: !!python/object/apply:os.system ['true']", "not readable as YAML"),
        (GOOD + "engine: {run_dir: '${engine.run_dir}'}", "ecursi"),
        (GOOD + "engine: {run_dir: '${nothing.here}'}", "nothing.here"),
    ],
)
def test_what_is_no_recipe_is_one_clear_message(tmp_path: Path, text: str, words: str) -> None:
    assert words in fault(tmp_path, text)


def test_a_file_that_is_not_utf8_is_one_clear_message(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(RecipeError, match="not readable as YAML"):
        load_recipe(path)


def test_numbers_in_scientific_notation_are_numbers(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD, "optim.lr=6e-5").optim.lr == 6e-5
