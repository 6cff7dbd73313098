"""What a rollout earns by rule, arXiv:2501.12948v2 2.2 and 2.3.2, and the signs that a policy games what it earns.

A reward takes TRL's keyword arguments, completions and columns of the rows as lists, and gives a number or None, which
does not count, for each completion. Completions are whole: a think block that the template opened is part of them.
"""

import importlib
import re
import sys
from collections.abc import Callable, Sequence
from statistics import fmean, variance
from typing import Any

from trl.rewards import (  # type: ignore[attr-defined]
    accuracy_reward,
    reasoning_accuracy_reward,
    think_format_reward,
)

from trainer.config import suggest
from trainer.errors import RecipeError
from trainer.language import FORMULA, language_score

Completions = list[list[dict[str, str]]]
Rewards = list[float | None]
Reward = Callable[..., Any]
OPEN, CLOSE = "<think>", "</think>"
NUMBER = re.compile(r"[-+−]?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?")
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
EARNED = "rewards/{}/mean".format  # TRL's names in its log


def split(content: str) -> tuple[str | None, str]:
    """Reasoning and answer of a whole completion; a think block that is never closed is all reasoning."""
    head, closed, answer = content.rpartition(CLOSE)
    if closed:
        return head.partition(OPEN)[2] if OPEN in head else head, answer.strip()
    return (content.partition(OPEN)[2], "") if OPEN in content else (None, content.strip())


def accuracy(completions: Completions, solution: list[str | None], **columns: Any) -> Rewards:
    """1 where the answer equals the gold, 0 where not or where there is none, None without a gold that can be read.

    TRL's `accuracy_reward` (math-verify) on the last box of the answer, which is what follows the thoughts. Where
    nothing is boxed, the answer's last number counts, or its last formula for golds that are no number. A choice is the
    letter in the box, or the last capital that stands alone.
    """
    kinds = columns.get("gold_type") or [None] * len(solution)
    answers = [split(turns[0]["content"])[1] for turns in completions]
    told = [_final(answer, gold or "") for answer, gold in zip(answers, solution, strict=True)]
    read = ["" if kind == "choice" else f"${gold}$" if "\\" in (gold or "") else gold or ""
            for kind, gold in zip(kinds, solution, strict=True)]  # fmt: skip
    judged: Rewards = accuracy_reward([[{"content": text}] for text in told], read)
    letters = [float(_letter(answer) == (gold or "").strip(" ().").upper()) if gold else None
               for answer, gold in zip(answers, solution, strict=True)]  # fmt: skip
    return [one if kind == "choice" else other for kind, one, other in zip(kinds, letters, judged, strict=True)]


def format(completions: Completions, **_: Any) -> Rewards:
    """1 for one think block with thoughts in it, first of all, and an answer after it, else 0.

    TRL's `think_format_reward`, which takes empty thoughts, an empty answer and further closing tags, and these rules.
    """
    contents = [turns[0]["content"].strip() for turns in completions]
    parts = [split(content) for content in contents]
    shaped = think_format_reward([[{"content": content}] for content in contents])
    sound = [bool((thoughts or "").strip() and answer) and content.count(CLOSE) == 1
             for content, (thoughts, answer) in zip(contents, parts, strict=True)]  # fmt: skip
    return [float(bool(one) and other) for one, other in zip(shaped, sound, strict=True)]


def language(completions: Completions, **columns: Any) -> Rewards:
    """Share of the reply's letters, thoughts and answer, that the prompt's language is written in; None without any."""
    asked = columns.get("language") or [None] * len(completions)
    texts = ["\n\n".join(filter(None, split(turns[0]["content"]))) for turns in completions]
    return [language_score(text, code) for text, code in zip(texts, asked, strict=True)]


RULES: dict[str, Reward] = {"accuracy": accuracy, "format": format, "language": language}
GIVEN: dict[str, Reward] = {
    one.__name__: one for one in (accuracy_reward, reasoning_accuracy_reward, think_format_reward)
}
PREFERENCES = {"helpfulness": False, "harmlessness": True}  # scored by a model; whether it reads the thoughts as well


def functions(settings: dict[str, Any], stage: str) -> dict[str, Reward | None]:
    """The rewards that a stage's settings name, those of weight 0 left out; None for what a preference model scores.
    One is a rule, a reward of TRL's, or `module.function` from the working directory. Raises RecipeError."""
    found: dict[str, Reward | None] = {}
    known = [*RULES, *PREFERENCES, *GIVEN]
    for name in weights(settings):
        if name in PREFERENCES and not (settings.get("reward_models") or {}).get(name):
            told = (
                f"Stage {stage}: {name} is scored by a model. Set stages.{stage}.reward_models.{name} to the directory"
            )
            raise RecipeError(f"{told} of a stage of kind reward, or its weight to 0.")
        found[name] = RULES.get(name) or GIVEN.get(name)
        if found[name] is None and name not in PREFERENCES:
            found[name] = _imported(name, f"Stage {stage}: reward {name!r} is none of {', '.join(known)}", known)
    if not found:
        raise RecipeError(
            f"Stage {stage} names no rewards. Set stages.grpo.rewards to {{name: weight}}: {', '.join(known)}."
        )
    return found


def weights(settings: dict[str, Any]) -> dict[str, float]:
    return {name: weight for name, weight in (settings.get("rewards") or {}).items() if weight}


def _imported(name: str, told: str, known: list[str]) -> Reward:
    module, _, function = name.rpartition(".")
    sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]
    except Exception as error:
        raise RecipeError(f"{told}, and cannot be imported here: {error}{suggest(name, known)}.") from error
    finally:
        sys.path.remove("")


def _final(answer: str, gold: str) -> str:
    """What is compared: the answer from its last box on; without one its last number or, for other golds, formula."""
    if boxes := list(BOX.finditer(answer)):
        return answer[boxes[-1].start() :]
    shown = NUMBER.findall(answer) if NUMBER.fullmatch(gold.strip()) else FORMULA.findall(answer[-10_000:])
    return f"\\boxed{{{shown[-1].strip('$%')}}}" if shown else ""


def _letter(answer: str) -> str | None:
    found = re.findall(r"\\boxed\s*\{\s*(?:\\text\s*\{)?\s*\(?([A-Z])\b", answer) or re.findall(r"\b([A-Z])\b", answer)
    return found[-1] if found else None


def signs(history: Sequence[dict[str, Any]]) -> list[str]:
    """Where accuracy falls while something else that the policy earns, or its length, rises: signs of reward hacking.

    `history` is what the trainer logged, an entry a step or several. The first quarter is compared with the last, of at
    least 4 entries each; a difference below two standard errors is none. arXiv:2501.12948v2 B.5 shows such a run.
    """
    names = [name for entry in history[-1:] for name in entry if re.fullmatch(r"rewards/.+/mean", name)]
    watched = [*names, "completions/mean_length", "completions/clipped_ratio"]
    moved = {name: _moved([entry[name] for entry in history if entry.get(name) is not None]) for name in watched}
    fell, lost = moved.pop(EARNED("accuracy"), None), []
    if not fell or fell[1] >= fell[0]:
        return []
    for name, change in moved.items():
        if change and change[1] > change[0]:
            what = name.removeprefix("rewards/").removesuffix("/mean").replace("completions/", "")
            lost.append(f"{what.replace('_', ' ')} rose from {change[0]:.3g} to {change[1]:.3g}")
    return [f"accuracy fell from {fell[0]:.3g} to {fell[1]:.3g} while {told}" for told in lost]


def _moved(values: list[float]) -> tuple[float, float] | None:
    """Means of the first and the last quarter where they differ by two standard errors or more."""
    quarter = len(values) // 4
    if quarter < 4:
        return None
    first, last = values[:quarter], values[-quarter:]
    error = ((variance(first) + variance(last)) / quarter) ** 0.5
    before, after = fmean(first), fmean(last)
    return (before, after) if abs(after - before) >= max(2 * error, 1e-9) else None
