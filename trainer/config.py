"""Recipes: YAML to what TRL is asked for, stage by stage. Unknown keys are refused with a suggestion."""

import contextlib
import dataclasses
import difflib
import re
from collections.abc import Iterable
from copy import deepcopy
from functools import cache, reduce
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from trl import GRPOConfig, RewardConfig, SFTConfig  # type: ignore[attr-defined]

from trainer.errors import RecipeError
from trainer.schedule import Stage

Settings = dict[str, Any]
PACKAGED = {path.stem: path for path in sorted((Path(__file__).parent / "recipes").glob("*.yaml"))}
KEYS = {"base": str, "defaults": dict, "stages": dict}
STRICT = ConfigDict(strict=True, allow_inf_nan=False)
KINDS = {"sft": SFTConfig, "grpo": GRPOConfig, "reward": RewardConfig}
OURS: dict[str, Settings] = {kind: {"peft": dict} for kind in KINDS}  # our own: docs/training.md
OURS["grpo"] |= {"rewards": dict[str, float | int | None], "reward_models": dict[str, str | None]}
OURS["sft"]["mask_prefix"], OURS["reward"]["scores"] = bool, Literal["helpfulness", "harmlessness"]
OWN = {name for names in OURS.values() for name in names}
# Where TRL has a default that would cut rows or rollouts, a recipe has to say how long they may be.
LENGTHS = {"sft": ("max_length", 1024), "reward": ("max_length", 1024), "grpo": ("max_completion_length", 512)}
ARGUMENTS = yaml.safe_load((Path(__file__).parent / "arguments.yaml").read_text(encoding="utf-8"))


class _Loader(yaml.SafeLoader): ...  # YAML in which `5e-5` is a number; YAML 1.1 takes it for text


_NUMBER = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+0123456789."))


class Recipe(NamedTuple):
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
    Raises RecipeError for a stage that the `schedule` lacks, and for what cuts rows or shows them each other."""
    names = [stage.name for stage in schedule]
    for name in sorted(recipe.required - {*KINDS, *names}, key=str):
        raise RecipeError(f"stages.{name} is a stage of neither {', '.join(names)}{suggest(name, names)}")
    settled: dict[str, Settings] = {}
    for stage in stages:
        own = recipe.stages.get(stage.name, {})
        check(own, stage.kind, f"stages.{stage.name}")
        settings = {name: value for name, value in recipe.defaults.items() if name in arguments(stage.kind)}
        asked = {} if stage.epochs is None else {"num_train_epochs": stage.epochs}
        for layer in (asked, recipe.stages.get(stage.kind, {}), own):
            settings |= {name: merged(settings.get(name), value) for name, value in layer.items()}
        name, cut = LENGTHS[stage.kind]
        window = settings.get(name, 0)  # null only without packing, and for rows alone
        if window == 0 or (window is None and (settings.get("packing") or stage.kind == "grpo")):
            raise RecipeError(f"Stage {stage.name}: set defaults.{name}: TRL cuts at {cut:,}, packing needs one.")
        if settings.get("packing_strategy") == "wrapped":
            raise RecipeError(f"Stage {stage.name}: packing_strategy wrapped cuts rows and lets them see each other.")
        whole = settings.get("bf16") is False or settings.get("fp16")  # TRL would always load in float32
        dtype = {"dtype": "float32" if whole else "bfloat16"}
        settings["model_init_kwargs"] = dtype | (settings.get("model_init_kwargs") or {})
        # Our own when empty are the default: the same stage as one trained without a word of them.
        settled[stage.name] = {name: value for name, value in settings.items() if value or name not in OWN}
    return settled


def _layers(name: str, *above: str) -> list[Settings]:
    """What a recipe says, after what those say that its `base` stands on; `above` are those that stand on it."""
    path = PACKAGED.get(name, Path(name))
    if not path.is_file():
        raise RecipeError(f"Recipe {name} is neither a file nor one of {', '.join(PACKAGED)}{suggest(name, PACKAGED)}.")
    if name in above:
        raise RecipeError(f"Recipe {name} stands on itself: {' on '.join([*above, name])}. Take one `base:` out.")
    content = _parse(path.read_bytes(), f"Recipe {name}") or {}
    for key, value in content.items() if isinstance(content, dict) else [("", content)]:
        if not isinstance({} if value is None else value, KEYS.get(key, ())):
            told = f"unknown key {key!r}{suggest(key, KEYS)}" if key not in KEYS else f"{key} is {value!r}"
            raise RecipeError(f"Recipe {name}: {told}. It has base: <recipe>, defaults: {{…}} and stages: {{…}}.")
    return [*(_layers(content["base"], *above, name) if "base" in content else []), content]


def _parse(text: str | bytes, what: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{what} is not valid YAML: {error}.") from error


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
    return "".join(f"; did you mean {close!r}?" for close in difflib.get_close_matches(str(word), list(known), n=1))


@cache
def arguments(kind: str) -> Settings:
    """Arguments of a kind, name to type; of all kinds for any other word."""
    if kind not in KINDS:
        return {name: wanted for each in KINDS for name, wanted in arguments(each).items()}
    found = {field.name: field.type for field in dataclasses.fields(KINDS[kind]) if not field.name.startswith("_")}
    return found | OURS[kind]


def check(settings: Any, kind: str, where: str) -> None:
    """Refuse unknown arguments, those that the trainer sets itself, and values of a wrong type or size."""
    known, what = arguments(kind), kind if kind in KINDS else "training"
    if not isinstance(settings, dict):
        raise RecipeError(f"{where}: {settings!r} stands where `<argument>: <value>` lines should.")
    for name, value in settings.items():
        if name in ARGUMENTS["owned"]:
            raise RecipeError(f"{where}.{name} cannot be set: rows, `position`, the model, --output, HF_TOKEN decide.")
        if name not in known:
            raise RecipeError(f"{where}: there is no {what} argument {name!r}{suggest(name, known)}")
        wanted, positive, fits = known[name], name in ARGUMENTS["positive"], False
        with contextlib.suppress(ValidationError):
            TypeAdapter(wanted, config=STRICT).validate_python(value)
            fits = not positive or value is None or value > 0
        if not fits:  # YAML takes a bare `no` for False
            told = f"{getattr(wanted, '__name__', wanted)}{' above 0' * positive}{', in quotes' * (value is False)}"
            raise RecipeError(f"{where}.{name} is {value!r}; it wants {told}.")
