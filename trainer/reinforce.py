"""GRPO stages: a recipe's rewards as TRL calls them, preference models among them, and what prompts earned."""

import asyncio
import contextlib
import inspect
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import AutoModelForSequenceClassification as Scorer
from transformers.integrations import is_deepspeed_zero3_enabled  # type: ignore[attr-defined]
from trl import GRPOTrainer  # type: ignore[attr-defined]

from trainer import render, rewards
from trainer.errors import RecipeError, StageError

ROLLOUTS = "rollouts.jsonl"  # what each prompt earned, a line a rollout batch
AT_ONCE = 8  # replies that a preference model reads


class Reward:
    """One reward as TRL calls it, on whole completions. What it raises or gives that is no reward stops the stage."""

    def __init__(self, name: str, function: Callable[..., Any], opened: str) -> None:
        self.__name__, self.function, self.opened = name, function, opened

    def __call__(self, completions: list[Any], **columns: Any) -> rewards.Rewards:
        replies = [[turns[-1] | {"content": self._whole(turns[-1])}] for turns in completions]
        step = columns["trainer_state"].global_step if columns.get("trainer_state") else 0
        told = f"Reward {self.__name__} failed at step {step:,} on {len(replies)} completions"
        try:
            given = self.function(completions=replies, **columns)
            return _checked(asyncio.run(given) if inspect.iscoroutine(given) else given, len(replies))
        except Exception as error:
            raise StageError(f"{told}: {error!r}. Mend it and run again: checkpoints are kept.") from error

    def _whole(self, message: dict[str, Any]) -> str:
        """The completion with the think block that the template opened, or that a tokenizer's parser took apart."""
        thoughts, content = message.get("reasoning_content") or message.get("thinking"), message.get("content") or ""
        return f"<think>\n{thoughts}\n</think>\n\n{content}" if thoughts else self.opened + content


def _checked(found: Any, number: int) -> rewards.Rewards:
    if not isinstance(found, list | tuple) or len(found) != number:
        raise ValueError(f"it gave {len(found) if isinstance(found, list | tuple) else found!r}, no list of {number}")
    for one in found:
        if not (one is None or (isinstance(one, Real) and math.isfinite(one))):
            raise ValueError(f"it gave {one!r}; a reward is a finite number, or None where it does not count")
    return [None if one is None else float(one) for one in found]


class Preference:
    """A reward model's score of replies to prompts without a gold, arXiv:2501.12948v2 3.1: `helpfulness` reads prompt
    and answer alone, `harmlessness` the whole reply; each with the tokenizer and template of its own directory."""

    def __init__(self, name: str, directory: Path) -> None:
        self.reads_thoughts, told = rewards.PREFERENCES[name], f"reward_models.{name}: {directory}"
        if is_deepspeed_zero3_enabled():  # type: ignore[no-untyped-call]
            raise RecipeError(f"{told} cannot be read beside ZeRO-3, which parts its weights. Shard by FSDP instead.")
        try:
            model, found = Scorer.from_pretrained(directory, num_labels=1, output_loading_info=True)
        except Exception as error:
            raise RecipeError(f"{told} is no model that can be loaded: {error}") from error
        if missing := sorted(found["missing_keys"]):
            raise RecipeError(f"{told} lacks {', '.join(missing)}, which would be random. Choose a reward model.")
        self.renderer, text = render.Renderer(directory, directory.name), model.config.get_text_config()
        self.model, tokenizer = model.requires_grad_(False).train(False), self.renderer.tokenizer
        # The model scores the last token that is not this one, so it has to be that of its training.
        pad = tokenizer.pad_token_id if text.pad_token_id is None else text.pad_token_id
        text.pad_token_id = tokenizer.pad_token_id = tokenizer.eos_token_id if pad is None else pad

    def __call__(self, prompts: list[Any], completions: Any, solution: list[str | None], **_: Any) -> rewards.Rewards:
        asked = [place for place, gold in enumerate(solution) if gold is None]
        contents = [completions[place][0]["content"] for place in asked]
        tokens = self.renderer.judged([prompts[place] for place in asked], contents, self.reads_thoughts)
        model, found = self.model.to("cuda" if torch.cuda.is_available() else "cpu"), dict[int, float]()
        for start in range(0, len(asked), AT_ONCE):
            rows = {"input_ids": tokens[start : start + AT_ONCE]}
            batch = self.renderer.tokenizer.pad(rows, padding_side="right", return_tensors="pt").to(model.device)
            with torch.inference_mode():
                found |= zip(asked[start:], model(**batch).logits[:, 0].float().tolist(), strict=False)
        return [found.get(place) for place in range(len(prompts))]


def load(settings: dict[str, Any], stage: str, opened: str, models: dict[str, Path]) -> list[Reward]:
    """The stage's rewards; `models` are the directories of `reward_models`, `opened` what a template has begun."""
    named = rewards.functions(settings, stage).items()
    return [Reward(name, function or Preference(name, models[name]), opened) for name, function in named]


class Rollouts(GRPOTrainer):
    """GRPOTrainer that keeps what each prompt earned, a line for each batch of rollouts, as its directory's file."""

    def _calculate_rewards(self, inputs: Any, *more: Any) -> torch.Tensor:
        found: torch.Tensor = super()._calculate_rewards(inputs, *more)
        positions = gather_object([row["position"] for row in inputs])  # both of all processes, one after another
        if self.accelerator.is_main_process and self.model.training:  # type: ignore[union-attr]
            columns = zip(self.reward_func_names, found.T.tolist(), strict=True)
            earned = {name: [None if math.isnan(one) else round(one, 4) for one in values] for name, values in columns}
            line = {"step": self.state.global_step, "position": positions, "rewards": earned}
            with (Path(str(self.args.output_dir)) / ROLLOUTS).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
        return found


def solved(directory: Path) -> dict[str, Any]:
    """How many prompts were tried, and how many always or never earned accuracy; these taught nothing."""
    best: dict[int, list[float]] = defaultdict(list)
    for line in _lines(directory):
        for position, earned in zip(line["position"], line["rewards"].get("accuracy", ()), strict=False):
            best[position] += [] if earned is None else [earned]
    tried = {position: earned for position, earned in best.items() if earned}
    never = sorted(position for position, earned in tried.items() if max(earned) <= 0)
    always = sum(min(earned) >= 1 for earned in tried.values())
    return {"tried": len(tried), "always_solved": always, "never_solved": len(never), "never": never[:1000]}


def rewind(directory: Path, step: int) -> None:
    """Forget the rollouts of a killed run past the checkpoint of `step`, which come again, and a torn last line."""
    kept = [json.dumps(line) + "\n" for line in _lines(directory) if line["step"] < step]
    (directory / f".{ROLLOUTS}").write_text("".join(kept), encoding="utf-8")
    (directory / f".{ROLLOUTS}").rename(directory / ROLLOUTS)  # or another kill here would lose them all


def _lines(directory: Path) -> Iterator[Any]:
    path = directory / ROLLOUTS
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):  # torn by a kill
            yield json.loads(text)


def advice(stage: str, tried: dict[str, Any], found: Sequence[str]) -> list[str]:
    """What the end of a stage says: signs of reward hacking, and prompts that taught nothing."""
    told = [f"stage {stage}: {sign}: a sign of reward hacking. Look at replies before you go on." for sign in found]
    if tried["never_solved"]:
        never = f"{tried['never_solved']:,} of {tried['tried']:,} prompts were never solved: accuracy taught nothing by"
        told.append(f"stage {stage}: {never} them. training.json names them by position, {ROLLOUTS} has every reward.")
    return told
