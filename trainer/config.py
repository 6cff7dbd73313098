"""Recipes: YAML to what TRL is asked for, stage by stage. Unknown keys are refused with a suggestion."""

import dataclasses
import difflib
import re
from collections.abc import Iterable
from copy import deepcopy
from functools import cache, reduce
from pathlib import Path
from typing import Any

import yaml
from trl import GRPOConfig, RewardConfig, SFTConfig  # type: ignore[attr-defined]

from trainer.errors import RecipeError
from trainer.schedule import Stage

Settings = dict[str, Any]
PACKAGED = {path.stem: path for path in sorted((Path(__file__).parent / "recipes").glob("*.yaml"))}
KEYS = ("base", "defaults", "stages")
KINDS = {"sft": SFTConfig, "grpo": GRPOConfig, "reward": RewardConfig}
# Our own for sft stages. mask_prefix: what the student wrote of a mixed row carries no loss; peft: a LoraConfig.
OURS = {"mask_prefix": bool, "peft": dict}
ARGUMENTS = yaml.safe_load((Path(__file__).parent / "arguments.yaml").read_text(encoding="utf-8"))


class _Loader(yaml.SafeLoader):
    """YAML in which `5e-5` is a number, as everybody writes it; YAML 1.1 takes it for text."""


_NUMBER = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+0123456789."))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Arguments for all stages, and for single stages or kinds: `stages` is keyed by a stage's name or by a kind."""

    name: str
    defaults: Settings
    stages: dict[str, Settings]
    required: set[str]  # stages that the dataset must have; a packaged recipe may know more than it has


def load(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The packaged recipe of that name, else the one at that path, under `key=value` overrides. Raises RecipeError."""
    name, asked = str(name_or_path), [_override(text) for text in overrides]
    layers = _layers(name)
    binding = asked if name in PACKAGED else [layers[-1], *asked]
    content: Settings = reduce(merged, [*layers, *asked])
    defaults, stages = content.get("defaults") or {}, content.get("stages") or {}
    for section, settings in {"": defaults, **stages}.items():
        check(settings, section, f"Recipe {name}: {'stages.' * bool(section)}{section or 'defaults'}")
    return Recipe(Path(name).stem, defaults, stages, {stage for each in binding for stage in each.get("stages") or ()})


def settle(recipe: Recipe, stages: Iterable[Stage], schedule: Iterable[Stage]) -> dict[str, Settings]:
    """Settings by stage, later over earlier: `defaults`, the epochs that the release asks for, the kind, the stage.

    Raises RecipeError for a stage that the `schedule` lacks, and for what cuts rows or shows them each other.
    """
    names = [stage.name for stage in schedule]
    for name in sorted(recipe.required - {*KINDS, *names}):
        raise RecipeError(f"stages.{name} is a stage of neither {', '.join(names)}{suggest(name, names)}")
    settled: dict[str, Settings] = {}
    for stage in stages:
        own = recipe.stages.get(stage.name, {})
        check(own, stage.kind, f"stages.{stage.name}")
        settings = {name: value for name, value in recipe.defaults.items() if name in arguments(stage.kind)}
        asked = {} if stage.epochs is None else {"num_train_epochs": stage.epochs}
        for layer in (asked, recipe.stages.get(stage.kind, {}), own):
            settings |= {name: merged(settings.get(name), value) for name, value in layer.items()}
        if stage.kind == "sft" and "max_length" not in settings:
            raise RecipeError(f"Stage {stage.name}: set defaults.max_length, or TRL would cut rows at 1,024 tokens.")
        if settings.get("packing_strategy") == "wrapped":
            raise RecipeError(f"Stage {stage.name}: packing_strategy wrapped cuts rows and lets them see each other.")
        half = settings.get("bf16") is not False and not settings.get("fp16")
        dtype = {"dtype": "bfloat16" if half else "float32"}  # TRL would load in float32
        settings["model_init_kwargs"] = dtype | (settings.get("model_init_kwargs") or {})
        # Our own when empty are the default: the same stage as one trained without a word of them.
        settled[stage.name] = {name: value for name, value in settings.items() if value or name not in OURS}
    return settled


def _layers(name: str) -> list[Settings]:
    """What a recipe says, after what those say that its `base` stands on."""
    path = PACKAGED.get(name, Path(name))
    if not path.is_file():
        raise RecipeError(f"Recipe {name} is neither a file nor one of {', '.join(PACKAGED)}{suggest(name, PACKAGED)}.")
    content = _parse(path.read_text(encoding="utf-8"), f"Recipe {name}") or {}
    for key in {*(content if isinstance(content, dict) else ["a list"])} - {*KEYS}:
        raise RecipeError(f"Recipe {name}: unknown key {key!r}{suggest(str(key), KEYS)}. It has {', '.join(KEYS)}.")
    return [*(_layers(content["base"]) if "base" in content else []), content]


def _parse(text: str, what: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{what} is not valid YAML: {' '.join(str(error).split())}.") from error


def _override(text: str) -> Settings:
    """`defaults.seed=1` as `{"defaults": {"seed": 1}}`."""
    key, equals, value = text.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys) or len(keys) < {"defaults": 2, "stages": 3}.get(keys[0], 99):
        raise RecipeError(f"{text!r}: an override is `defaults.<argument>=…` or `stages.<stage>.<argument>=…`.")
    return dict(reduce(lambda inner, key: {key: inner}, reversed(keys), _parse(value, text)))


def merged(below: Any, above: Any) -> Any:
    """`above` over `below`, section by section; an empty section clears what lies below."""
    if not (isinstance(below, dict) and isinstance(above, dict) and above):
        return deepcopy(above)
    return below | {name: merged(below.get(name), value) for name, value in above.items()}


def suggest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'X'?` for the closest known word, else nothing."""
    return "".join(f"; did you mean {close!r}?" for close in difflib.get_close_matches(word, list(known), n=1))


@cache
def arguments(kind: str) -> Settings:
    """Arguments of a kind, name to type; of all kinds for any other word."""
    if kind not in KINDS:
        return {name: wanted for each in KINDS for name, wanted in arguments(each).items()}
    found = {field.name: field.type for field in dataclasses.fields(KINDS[kind]) if not field.name.startswith("_")}
    return found | (OURS if kind == "sft" else {})


def check(settings: Any, kind: str, where: str) -> None:
    """Refuse unknown arguments, those that the trainer sets itself, and plainly wrong types."""
    known = arguments(kind)
    if not isinstance(settings, dict):
        raise RecipeError(f"{where}: {settings!r} stands where `<argument>: <value>` lines should.")
    for name, value in settings.items():
        if name in ARGUMENTS["owned"]:
            raise RecipeError(f"{where}.{name} cannot be set: rows, `position`, the model and --output decide it.")
        if name not in known:
            what = kind if kind in KINDS else "training"
            raise RecipeError(f"{where}: there is no {what} argument {name!r}{suggest(name, known)}")
        wanted = {float: (int, float), int: (int,), bool: (bool,), dict: (dict,)}.get(known[name])
        if wanted and (not isinstance(value, wanted) or isinstance(value, bool) != (bool in wanted)):
            raise RecipeError(f"{where}.{name} is {value!r}; it wants {known[name].__name__}.")
