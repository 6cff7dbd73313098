"""Trainer recipes: YAML to a checked object. `stages:` is keyed by a stage's name or by a kind."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from trainer import config
from trainer.errors import RecipeError

PACKAGED = {path.stem: path for path in sorted((Path(__file__).parent / "recipes").glob("*.yaml"))}


class Recipe(BaseModel):
    """TRL arguments for all stages, and for single stages or kinds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    defaults: dict[str, Any]
    stages: dict[str, dict[str, Any]]
    # Stage names that the dataset must have. A packaged recipe may know stages that a first version lacks.
    required: frozenset[str]


class _Loader(yaml.SafeLoader):
    """YAML in which `5e-5` is a number, as everybody writes it; YAML 1.1 takes it for text."""


_NUMBER = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+0123456789."))


def load(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of that path, else the packaged one of that name, with `key=value` overrides applied.

    Raises RecipeError for an unknown recipe, malformed YAML, an unknown key, or a value of the wrong type.
    """
    what, path = f"Recipe {name_or_path}", Path(name_or_path)
    packaged = not path.is_file()
    if packaged and str(path) not in PACKAGED:
        hint = config.suggest(str(path), PACKAGED)
        raise RecipeError(f"{what} is neither a file nor one of {', '.join(PACKAGED)}{hint}.")
    content = _parse((PACKAGED[str(path)] if packaged else path).read_text(encoding="utf-8"), what) or {}
    for extra in set(content if isinstance(content, dict) else ["- …"]) - {"defaults", "stages"}:
        hint = config.suggest(str(extra), ["defaults", "stages"])
        raise RecipeError(f"{what}: unknown key {extra!r}{hint}. A recipe has `defaults:` and `stages:`.")
    required = set() if packaged else set(content.get("stages") or ())
    for override in overrides:
        required |= _apply(content, override)
    parts = {key: content.get(key) or {} for key in ("defaults", "stages")}
    try:
        recipe = Recipe(name=path.stem, required=frozenset(required), **parts)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(f"{what}: {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}.") from error
    config.check(recipe.defaults, "sft", f"{what}: defaults")
    for stage, settings in recipe.stages.items():
        config.check(settings, stage if stage in config.KINDS else None, f"{what}: stages.{stage}")
    return recipe


def _parse(text: str, what: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{what} is not valid YAML: {' '.join(str(error).split())}.") from error


def _apply(content: dict[str, Any], override: str) -> set[str]:
    """Write one override into the content. Returns the stage or kind that it names."""
    key, equals, value = override.partition("=")
    *sections, last = keys = key.strip().split(".")
    if not equals or not all(keys) or len(keys) < {"defaults": 2, "stages": 3}.get(keys[0], 99):
        raise RecipeError(f"{override!r}: an override is `defaults.<argument>=…` or `stages.<stage>.<argument>=…`.")
    node = content
    for part in sections:
        node[part] = node = node.get(part) or {}
        if not isinstance(node, dict):
            raise RecipeError(f"Cannot apply {override!r}: {part} is a value, not a section.")
    node[last] = _parse(value, f"The value of {override!r}")
    return set(keys[1:2]) if keys[0] == "stages" else set()
