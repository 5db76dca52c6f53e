"""The files of a recipe: its fragments, itself and the command line, merged, and where each key was written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vitdense.errors import RecipeError

COMMAND_LINE = "command line"


def read_files(path: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Fragments left to right, the recipe, the command line; and for every dotted key where it was written."""
    recipe = _read(path)
    origins: dict[str, str] = {}
    layers: list[DictConfig] = []
    fragments = recipe.pop("base", None) or []
    for fragment in [fragments] if isinstance(fragments, str) else fragments:
        file = path.parent / fragment
        layer = _read(file, named_in=path)
        if "base" in layer:
            raise RecipeError(f"{file}: a fragment can't have a `base:` of its own (fragments go one level deep)")
        layers.append(layer)
        origins |= _lines(file)
    layers.append(recipe)
    origins |= _lines(path)
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise RecipeError(f"{COMMAND_LINE}: {override!r} is no override; expected key.sub=value")
        origins[key] = COMMAND_LINE
    try:
        merged = OmegaConf.merge(*layers, OmegaConf.from_dotlist(list(overrides)))
        plain = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: {str(error).splitlines()[0]}") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}, origins


def _read(path: Path, named_in: Path | None = None) -> DictConfig:
    try:
        loaded = OmegaConf.load(path)
    except FileNotFoundError as error:
        where = f" (named in `base:` of {named_in})" if named_in else ""
        raise RecipeError(f"no recipe at {path}{where}") from error
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException, OSError) as error:
        raise RecipeError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, DictConfig) or not loaded:
        raise RecipeError(f"{path}: expected a mapping of sections, such as backbone, head and data")
    return loaded


def _lines(path: Path) -> dict[str, str]:
    """Dotted key -> file:line."""
    found: dict[str, str] = {}

    def walk(node: yaml.Node | None, prefix: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                dotted = f"{prefix}{key.value}"
                found[dotted] = f"{path}:{key.start_mark.line + 1}"
                walk(value, f"{dotted}.")

    walk(yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader), "")
    return found
