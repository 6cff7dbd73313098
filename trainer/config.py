"""Recipes: YAML to what TRL is asked for, stage by stage. Unknown keys are refused with a suggestion."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from trl import GRPOConfig, RewardConfig, SFTConfig  # type: ignore[attr-defined]

from trainer.errors import RecipeError
from trainer.schedule import Stage

PACKAGED = {path.stem: path for path in sorted((Path(__file__).parent / "recipes").glob("*.yaml"))}
KINDS = {"sft": SFTConfig, "grpo": GRPOConfig, "reward": RewardConfig}
# Our own for sft stages, name to type. mask_prefix: what the student wrote of a mixed row carries no loss; peft:
# arguments of a LoraConfig, whose weights are merged when the stage ends.
OURS = {"mask_prefix": bool, "peft": dict}
# Arguments that the trainer sets itself, by the reason why nobody else may.
OWNED = {
    "rows reach TRL as tokens and labels": "dataset_kwargs dataset_text_field assistant_only_loss completion_only_loss "
    "remove_unused_columns truncation_mode",
    "`position` orders the rows": "shuffle_dataset train_sampling_strategy",
    "the model's own tokenizer and template are what inference prompts with": "chat_template_path eos_token pad_token",
    "--output decides": "output_dir push_to_hub resume_from_checkpoint",
}
# Change what is printed or kept, not the weights: a finished stage stays finished when they change.
_PRINTED = {"logging_steps", "logging_strategy", "logging_first_step", "report_to", "run_name", "disable_tqdm"}
COSMETIC = _PRINTED | {"save_strategy", "save_steps", "save_total_limit", "save_only_model", "dataset_num_proc"}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Arguments for all stages, and for single stages or kinds: `stages:` is keyed by a stage's name or by a kind."""

    name: str
    defaults: dict[str, Any]
    stages: dict[str, dict[str, Any]]
    required: frozenset[str]  # stages that the dataset must have; a packaged recipe may know more than it has


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
        known = f"{', '.join(PACKAGED)}{suggest(str(path), PACKAGED)}"
        raise RecipeError(f"{what} is neither a file nor one of {known}.")
    content = _parse((PACKAGED[str(path)] if packaged else path).read_text(encoding="utf-8"), what) or {}
    for extra in set(content if isinstance(content, dict) else ["- …"]) - {"defaults", "stages"}:
        hint = suggest(str(extra), ["defaults", "stages"])
        raise RecipeError(f"{what}: unknown key {extra!r}{hint}. A recipe has `defaults:` and `stages:`.")
    required = set() if packaged else set(content.get("stages") or ())
    for override in overrides:
        required |= _apply(content, override)
    defaults, stages = (_section(content.get(key) or {}, what) for key in ("defaults", "stages"))
    check(defaults, "sft", f"{what}: defaults")
    for stage, settings in stages.items():
        check(_section(settings, what), stage if stage in KINDS else None, f"{what}: stages.{stage}")
    return Recipe(path.stem, defaults, stages, frozenset(required))


def settle(recipe: Recipe, stages: Sequence[Stage], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Settings by stage, later over earlier: `defaults`, the epochs that the release asks for, the kind, the stage.

    Adds the dtype where the recipe leaves it open, since TRL loads in float32. Raises RecipeError for a stage that
    the dataset (`names`) lacks, and for what would cut rows or let them see each other.
    """
    for name in sorted(recipe.required - {*KINDS, *names}):
        raise RecipeError(f"stages.{name} is a stage of neither {', '.join(names)}{suggest(name, names)}")
    settled: dict[str, dict[str, Any]] = {}
    for stage in stages:
        check(recipe.stages.get(stage.name, {}), stage.kind, f"stages.{stage.name}")
        settings = deepcopy({name: value for name, value in recipe.defaults.items() if name in arguments(stage.kind)})
        asked = {} if stage.epochs is None else {"num_train_epochs": stage.epochs}
        for layer in (asked, recipe.stages.get(stage.kind, {}), recipe.stages.get(stage.name, {})):
            for name, value in layer.items():
                # Sections such as model_init_kwargs merge; an empty one clears what lies below.
                merged = value and isinstance(value, dict) and isinstance(settings.get(name), dict)
                settings[name] = settings[name] | value if merged else deepcopy(value)
        if stage.kind == "sft" and "max_length" not in settings:
            raise RecipeError(f"Stage {stage.name}: set defaults.max_length, or TRL would cut rows at 1,024 tokens.")
        if settings.get("packing_strategy") == "wrapped":
            raise RecipeError(f"Stage {stage.name}: packing_strategy wrapped cuts rows and lets them see each other.")
        half = settings.get("bf16") is not False and not settings.get("fp16")
        dtype = {"dtype": "bfloat16" if half else "float32"}
        settings["model_init_kwargs"] = dtype | (settings.get("model_init_kwargs") or {})
        # Our own when empty are the default: the same stage as one trained without a word of them.
        settled[stage.name] = {name: value for name, value in settings.items() if value or name not in OURS}
    return settled


def suggest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'X'?` for the closest known word, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


@cache
def arguments(kind: str | None) -> dict[str, Any]:
    """Arguments of a kind, name to type; of all kinds for None."""
    if kind is None:
        return {name: wanted for each in KINDS for name, wanted in arguments(each).items()}
    found = {field.name: field.type for field in dataclasses.fields(KINDS[kind]) if not field.name.startswith("_")}
    return found | (OURS if kind == "sft" else {})


def check(settings: dict[str, Any], kind: str | None, where: str) -> None:
    """Refuse unknown arguments, those that the trainer sets itself, and plainly wrong types."""
    known = arguments(kind)
    for name, value in settings.items():
        for reason in (reason for reason, names in OWNED.items() if name in names.split()):
            raise RecipeError(f"{where}.{name} cannot be set: {reason}.")
        if name not in known:
            raise RecipeError(f"{where}: there is no {kind or 'training'} argument {name!r}{suggest(name, known)}")
        wanted = {float: (int, float), int: (int,), bool: (bool,), dict: (dict,)}.get(known[name])
        if wanted and (not isinstance(value, wanted) or isinstance(value, bool) != (bool in wanted)):
            raise RecipeError(f"{where}.{name} is {value!r}; it wants {known[name].__name__}.")


def _section(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RecipeError(f"{what}: {value!r} stands where `<argument>: <value>` lines should.")
    return value


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
        node[part] = node = _section(node.get(part) or {}, f"Cannot apply {override!r}")
    node[last] = _parse(value, f"The value of {override!r}")
    return set(keys[1:2]) if keys[0] == "stages" else set()
