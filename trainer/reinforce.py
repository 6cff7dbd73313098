"""GRPO stages: a recipe's rewards as TRL calls them, preference models among them, and what prompts earned."""

import asyncio
import contextlib
import inspect
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import AutoModelForSequenceClassification
from trl import GRPOTrainer  # type: ignore[attr-defined]

from trainer import lineage, render, rewards
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
            found = asyncio.run(given) if inspect.iscoroutine(given) else given
            problem = None if isinstance(found, list | tuple) else f"it gave {type(found).__name__}, no list"
        except Exception as error:
            raise StageError(f"{told}: {error!r}. Mend it and run again: checkpoints are kept.") from error
        if not problem and len(found) != len(replies):
            problem = f"it gave {len(found)} rewards"
        if not problem and (wrong := [one for one in found if not _is_reward(one)]):
            problem = f"it gave {wrong[0]!r}; a reward is a finite number, or None where it does not count"
        if problem:
            raise StageError(f"{told}: {problem}. Mend it and run again: checkpoints are kept.")
        return [None if one is None else float(one) for one in found]

    def _whole(self, message: dict[str, Any]) -> str:
        """The completion with the think block that the template opened, or that a tokenizer's parser took apart."""
        thoughts, content = message.get("reasoning_content") or message.get("thinking"), message.get("content") or ""
        return f"<think>\n{thoughts}\n</think>\n\n{content}" if thoughts else self.opened + content


def _is_reward(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and math.isfinite(value))


class Preference:
    """A reward model's score of replies to prompts without a gold, arXiv:2501.12948v2 3.1: `helpfulness` reads prompt
    and answer alone, `harmlessness` the whole reply. `longest` are the tokens that a reply may have."""

    def __init__(self, name: str, directory: Path, longest: int) -> None:
        self.reads_thoughts = rewards.PREFERENCES[name]
        scores = (lineage.content(directory / lineage.RECORD) or {}).get("settings", {}).get("scores", name)
        if scores != name:
            raise RecipeError(f"reward_models.{name}: {directory} was trained to score {scores}. Choose another model.")
        try:
            model = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=1)
        except Exception as error:
            raise RecipeError(f"reward_models.{name}: {directory} is no model that can be loaded: {error}") from error
        self.renderer = render.Renderer(directory, directory.name)
        self.model, text = model.requires_grad_(False).train(False), model.config.get_text_config()
        # The model scores the last token that is not this one, so it has to be that of its training.
        self.pad = self.renderer.tokenizer.pad_token_id if text.pad_token_id is None else text.pad_token_id
        text.pad_token_id = self.pad = self.renderer.tokenizer.eos_token_id if self.pad is None else self.pad
        places = getattr(text, "max_position_embeddings", None)
        if places and longest > places:
            told = f"reward_models.{name}: {directory} reads {places:,} tokens, prompt and reply may have {longest:,}"
            raise RecipeError(f"{told}. Lower max_completion_length or choose another model.")

    def __call__(
        self, prompts: list[Any], completions: rewards.Completions, solution: list[str | None], **_: Any
    ) -> rewards.Rewards:
        asked = [place for place, gold in enumerate(solution) if gold is None]
        contents = [completions[place][0]["content"] for place in asked]
        tokens = self.renderer.judged([prompts[place] for place in asked], contents, self.reads_thoughts)
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        scores = [
            one for start in range(0, len(asked), AT_ONCE) for one in self._scores(tokens[start : start + AT_ONCE])
        ]
        found = dict(zip(asked, scores, strict=True))
        return [found.get(place) for place in range(len(prompts))]

    def _scores(self, tokens: list[list[int]]) -> list[float]:
        wide, device = max(map(len, tokens)), self.model.device
        ids = torch.tensor([row + [self.pad] * (wide - len(row)) for row in tokens], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (wide - len(row)) for row in tokens], device=device)
        with torch.inference_mode():
            scores: list[float] = self.model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()
        return scores


def load(
    settings: dict[str, Any], stage: str, renderer: render.Renderer, models: dict[str, Path], longest: int
) -> list[Reward]:
    """The stage's rewards; `models` are the directories of `reward_models`, `longest` the tokens of both sides."""
    found: list[Reward] = []
    for name, function in rewards.functions(settings, stage).items():
        found.append(Reward(name, function or Preference(name, models[name], longest), renderer.begun))
    return found


class Rollouts(GRPOTrainer):
    """GRPOTrainer that keeps what each prompt earned, a line for each batch of rollouts, as its directory's file."""

    def _calculate_rewards(self, inputs: Any, *more: Any) -> torch.Tensor:
        found: torch.Tensor = super()._calculate_rewards(
            inputs, *more
        )  # of all processes, their rows one after another
        positions = gather_object([row["position"] for row in inputs])
        if self.accelerator.is_main_process and self.model.training:  # type: ignore[union-attr]
            names = list(self.reward_func_names)
            earned = {name: [_short(value) for value in found[:, place].tolist()] for place, name in enumerate(names)}
            line = {"step": self.state.global_step, "position": positions, "rewards": earned}
            with (Path(str(self.args.output_dir)) / ROLLOUTS).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
        return found


def _short(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def solved(directory: Path) -> dict[str, Any]:
    """How many prompts were tried, and how many always or never earned accuracy; these taught nothing. None without."""
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
    (directory / ROLLOUTS).write_text("".join(kept), encoding="utf-8")


def _lines(directory: Path) -> Iterator[Any]:
    path = directory / ROLLOUTS
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):  # torn by a kill
            yield json.loads(text)


def advice(stage: str, tried: dict[str, Any], found: Sequence[str]) -> list[str]:
    """What the end of a stage says: signs of reward hacking, and prompts that taught nothing."""
    told = [f"stage {stage}: {sign}: a sign of reward hacking. Look at replies before you go on." for sign in found]
    if tried["never_solved"]:
        told.append(
            f"stage {stage}: {tried['never_solved']:,} of {tried['tried']:,} prompts were never solved: they taught "
            f"nothing. training.json names them by position, {ROLLOUTS} has every reward."
        )
    return told
