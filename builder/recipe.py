"""Recipes from files: packaged names, YAML, `key=value` overrides, and errors that list every problem at once."""

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from builder.config import Recipe
from builder.errors import UsageError
from builder.section import Section


def packaged_recipes() -> dict[str, Path]:
    """Recipes inside the package, by name."""
    folder = Path(__file__).resolve().parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(recipe: str) -> Path:
    """A path, else a packaged recipe's name. Raises UsageError with the nearest names."""
    path = Path(recipe)
    if path.is_file():
        return path
    packaged = packaged_recipes()
    if recipe in packaged:
        return packaged[recipe]
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    raise UsageError(
        f"There is no recipe {recipe!r}: no such file, and no packaged recipe of that name"
        f"{_did_you_mean(recipe, list(packaged))}. Packaged: {', '.join(packaged) or 'none'}."
    )


def load_recipe(recipe: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read, override and check a recipe. Every problem is listed at once, in one UsageError."""
    path = find_recipe(str(recipe))
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"Recipe {path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise UsageError(f"Recipe {path} holds no keys; the least is `name`, `prompts` and `teacher`.")
    if isinstance(data.get("prompts"), dict):  # one source without a list, so that prompts.0.source=FILE finds it
        data["prompts"] = [data["prompts"]]
    for override in overrides or []:
        _override(data, override)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise UsageError(f"Recipe {path} is not valid:\n" + "\n".join(_problems(error))) from None


def _override(data: dict[str, Any], override: str) -> None:
    """Set `a.0.b=value`; the value is YAML, so numbers, lists and null are what they look like."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise UsageError(f"{override!r} is no override; write key=value, such as generation.samples=8.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"The value of {override!r} is not YAML: {error}") from error
    *parents, last = dotted.split(".")
    here: Any = data
    for depth, key in enumerate(parents):
        following = [*parents, last][depth + 1]
        here = _descend(here, key, [] if following.isdecimal() else {}, override)
    if isinstance(here, list):
        index = _index(here, last, override)
        here[index : index + 1] = [value]
    elif isinstance(here, dict):
        here[last] = value
    else:
        raise UsageError(f"{override!r}: {'.'.join(parents)} is {here!r}, which has no key {last!r}.")


def _descend(here: Any, key: str, empty: Any, override: str) -> Any:
    if isinstance(here, list):
        index = _index(here, key, override)
        if index == len(here):
            here.append(empty)
        return here[index]
    if not isinstance(here, dict):
        raise UsageError(f"{override!r}: there is no key {key!r} inside {here!r}.")
    if here.get(key) is None:
        here[key] = empty
    return here[key]


def _index(here: list[Any], key: str, override: str) -> int:
    if not key.isdecimal() or int(key) > len(here):
        raise UsageError(f"{override!r}: {key!r} is no index of a list with {len(here)} entries.")
    return int(key)


def _problems(error: ValidationError) -> list[str]:
    """One line a problem: where, what, and the nearest known key."""
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"] if not str(part).startswith(("function-", "Gold")))
        if problem["type"] == "extra_forbidden":
            known = _keys_at(problem["loc"][:-1])
            lines.append(f"  {where}: unknown key{_did_you_mean(str(problem['loc'][-1]), known)}")
        elif problem["type"] == "missing":
            lines.append(f"  {where}: is missing")
        elif problem["loc"][-1] == "str" and isinstance(problem["input"], dict):
            continue  # the other way to write a gold; the errors of the way that was chosen are in the list
        elif problem["type"] == "value_error":  # ours: names the value itself, unless it could be a secret
            lines.append(f"  {where}: {problem['msg'].removeprefix('Value error, ')}")
        else:
            lines.append(f"  {where}: {problem['msg']} (got {_shorten(problem['input'])})")
    return lines


def _keys_at(location: tuple[str | int, ...]) -> list[str]:
    """Known keys of the section at a location of the recipe."""
    section: Any = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        field = section.model_fields.get(part) if hasattr(section, "model_fields") else None
        inner = _section_of(field.annotation) if field else None
        section = inner or section
    return list(section.model_fields)


def _section_of(annotation: Any) -> type[Section] | None:
    """The first Section inside an annotation such as `list[Endpoint]` or `Gold | str | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if found := _section_of(argument):
            return found
    return None


def _did_you_mean(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
