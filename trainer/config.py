"""What a stage may set: TRL's own arguments, read from TRL's source so that a typo is refused before torch loads."""

import ast
import difflib
import importlib.util
from collections.abc import Iterable, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import RecipeError
from trainer.schedule import Stage

if TYPE_CHECKING:
    from trainer.recipe import Recipe

KINDS = ("sft", "grpo", "reward")
SOURCES = (("transformers", "training_args"), ("trl", "trainer/base_config"), ("trl", "trainer/{kind}_config"))

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


def suggest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'X'?` for the closest known word, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


@cache
def arguments(kind: str | None) -> dict[str, str]:
    """TRL's arguments of a kind, name to type as its source writes it; of all kinds for None."""
    if kind is None:
        return {name: text for each in KINDS for name, text in arguments(each).items()}
    found: dict[str, str] = {}
    for package, module in SOURCES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise RecipeError(f"{package} is not installed. Training needs it: pip install 'tempered[train]'.")
        tree = ast.parse((Path(spec.origin).parent / f"{module.format(kind=kind)}.py").read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name.endswith(("Config", "TrainingArguments")):
                fields = (item for item in node.body if isinstance(item, ast.AnnAssign))
                found |= {ast.unparse(field.target): ast.unparse(field.annotation) for field in fields}
    return {name: text for name, text in found.items() if not name.startswith("_")}


def check(settings: dict[str, Any], kind: str | None, where: str) -> None:
    """Refuse unknown arguments, those that the trainer sets itself, and plainly wrong types."""
    known = arguments(kind)
    for name, value in settings.items():
        reason = next((reason for reason, names in OWNED.items() if name in names.split()), None)
        if reason:
            raise RecipeError(f"{where}.{name} cannot be set: {reason}.")
        if name not in known:
            raise RecipeError(f"{where}: TRL has no {kind or 'training'} argument {name!r}{suggest(name, known)}")
        wanted = {"float": (int, float), "int": (int,), "bool": (bool,)}.get(known[name])
        if wanted and (not isinstance(value, wanted) or isinstance(value, bool) != (bool in wanted)):
            raise RecipeError(f"{where}.{name} is {value!r}; TRL wants {known[name]}.")


def settle(recipe: "Recipe", stages: Sequence[Stage], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Settings by stage, later over earlier: `defaults`, the epochs that the release asks for, the kind, the stage.

    Adds the dtype where the recipe leaves it open, since TRL loads in float32. Raises RecipeError for a stage that
    the dataset (`names`) lacks, and where max_length would be left to TRL's 1,024.
    """
    for name in sorted(recipe.required - {*KINDS, *names}):
        raise RecipeError(f"stages.{name} is a stage of neither {', '.join(names)}{suggest(name, names)}")
    settled: dict[str, dict[str, Any]] = {}
    for stage in stages:
        check(recipe.stages.get(stage.name, {}), stage.kind, f"stages.{stage.name}")
        shared = {name: value for name, value in recipe.defaults.items() if name in arguments(stage.kind)}
        settings = settled[stage.name] = deepcopy(shared)
        asked = {} if stage.epochs is None else {"num_train_epochs": stage.epochs}
        for layer in (asked, recipe.stages.get(stage.kind, {}), recipe.stages.get(stage.name, {})):
            settings |= {k: settings[k] | v if _both(settings, k, v) else deepcopy(v) for k, v in layer.items()}
        if stage.kind == "sft" and "max_length" not in settings:
            raise RecipeError(f"Stage {stage.name}: set defaults.max_length, or TRL would cut rows at 1,024 tokens.")
        half = settings.get("bf16") is not False and not settings.get("fp16")
        dtype = {"dtype": "bfloat16" if half else "float32"}
        settings["model_init_kwargs"] = dtype | (settings.get("model_init_kwargs") or {})
    return settled


def _both(settings: dict[str, Any], name: str, value: Any) -> bool:
    """Both sides are sections, such as model_init_kwargs, which merge."""
    return bool(value) and isinstance(value, dict) and isinstance(settings.get(name), dict)
