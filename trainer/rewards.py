"""What a rollout earns by rule, arXiv:2501.12948v2 2.2 and 2.3.2, and the signs that a policy games what it earns.

A reward takes TRL's keyword arguments, completions and columns of the rows as lists, and gives a number or None, which
does not count, for each. Completions are whole: a think block that the template opened is part of them."""

import importlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, variance
from typing import Any

from trl.rewards import accuracy_reward, reasoning_accuracy_reward, think_format_reward  # type: ignore[attr-defined]

from trainer.config import suggest
from trainer.errors import RecipeError
from trainer.language import FORMULA, language_score

Completions = list[list[dict[str, str]]]
Rewards = list[float | None]
Reward = Callable[..., Any]
OPEN, CLOSE = "<think>", "</think>"
NUMBER = re.compile(r"[-+−]?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?")
WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{4,}")
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
MATH = (None, "number", "integer", "latex")  # gold types that math-verify reads
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
    letter in the box, or the last capital that stands alone. Golds of other types, as tests of code, are not read."""
    kinds = columns.get("gold_type") or [None] * len(solution)
    golds = [(gold or "").replace("−", "-").strip().lstrip("+") for gold in solution]  # math-verify reads neither sign
    answers = [split(turns[0]["content"])[1].replace("−", "-") for turns in completions]
    told = [_final(answer, gold) for answer, gold in zip(answers, golds, strict=True)]
    read = [_formula(gold) if kind in MATH else "" for kind, gold in zip(kinds, golds, strict=True)]
    judged: Rewards = accuracy_reward([[{"content": text}] for text in told], read)
    right = [gold.strip(" ().").upper() for gold in golds]
    letters = [float(_letter(answer) == one) if re.fullmatch("[A-Z]", one) else None
               for answer, one in zip(answers, right, strict=True)]  # fmt: skip
    return [one if kind == "choice" else other for kind, one, other in zip(kinds, letters, judged, strict=True)]


def format(completions: Completions, **_: Any) -> Rewards:
    """1 for one think block with thoughts in it, first of all, and an answer after it, else 0: TRL's
    `think_format_reward`, which takes empty thoughts, an empty answer and further closing tags, less these."""
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
GIVEN: dict[str, Reward] = {f.__name__: f for f in (accuracy_reward, reasoning_accuracy_reward, think_format_reward)}
PREFERENCES = {"helpfulness": False, "harmlessness": True}  # scored by a model; whether it reads the thoughts as well


def functions(settings: dict[str, Any], stage: str) -> dict[str, Reward | None]:
    """The rewards that a stage's settings name, those of weight 0 left out; None for what a preference model scores.
    One is a rule, a reward of TRL's, or `module.function` from the working directory. Raises RecipeError."""
    found, known = dict[str, Reward | None](), [*RULES, *PREFERENCES, *GIVEN]
    for name in weights(settings):
        if name in PREFERENCES and not (settings.get("reward_models") or {}).get(name):
            told = f"Stage {stage}: {name} is scored by a model. Set stages.{stage}.reward_models.{name}"
            raise RecipeError(f"{told} to the directory of a stage of kind reward, or its weight to 0.")
        found[name] = RULES.get(name) or GIVEN.get(name)
        if found[name] is None and name not in PREFERENCES:
            found[name] = _imported(name, f"Stage {stage}: reward {name!r} is none of {', '.join(known)}", known)
    for name in (name for name, where in (settings.get("reward_models") or {}).items() if where and name not in found):
        told = f"Stage {stage}: there is a reward model for {name}, but no weight"
        raise RecipeError(f"{told}, so nothing would be earned by it. Set stages.{stage}.rewards, {{{name}: 1.0}}.")
    if not found:
        raise RecipeError(f"Stage {stage} names no rewards. Set weights in stages.grpo.rewards: {', '.join(known)}.")
    return found


def weights(settings: dict[str, Any]) -> dict[str, float]:
    return {name: weight for name, weight in (settings.get("rewards") or {}).items() if weight}


def _imported(name: str, told: str, known: list[str]) -> Reward:
    module, _, function = name.rpartition(".")
    sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:
        raise RecipeError(f"{told}, and cannot be imported here: {error}{suggest(name, known)}.") from error
    finally:
        sys.path.remove("")
    if not callable(found):
        raise RecipeError(f"{told}, and what can be imported here is {type(found).__name__}, no function.")
    return found  # type: ignore[no-any-return]


def golds(solution: Iterable[str | None], kinds: Iterable[str | None]) -> dict[str, int]:
    """How many prompts have a gold, and how many of these golds accuracy cannot read."""
    given = Counter((gold, kind) for gold, kind in zip(solution, kinds, strict=True) if gold is not None)
    asked = [(gold, kind) for gold, kind in given if kind not in MATH or not NUMBER.fullmatch(gold.strip())]
    told = accuracy([[{"content": ""}]] * len(asked), [gold for gold, _ in asked], gold_type=[one for _, one in asked])
    unread = sum(given[pair] for pair, one in zip(asked, told, strict=True) if one is None)
    return {"golds": given.total(), "unread_golds": unread}


def earnable(names: Iterable[str], counts: dict[str, int], stage: str) -> list[str]:
    """What to know of rewards that not every prompt can earn. Raises RecipeError where no prompt can earn any."""
    every, own, read = counts["rows"], counts["golds"], counts["golds"] - counts["unread_golds"]
    able = {name: ({"accuracy": read} | dict.fromkeys(PREFERENCES, every - own)).get(name, every) for name in names}
    short = [f"{number:,} can earn {name}" for name, number in able.items() if number < every]
    told = f"of {every:,} prompts {', '.join(short)}: {own:,} have a gold, {read:,} one that accuracy reads"
    told += "; preferences are for prompts without"
    if not any(able.values()):
        raise RecipeError(f"Stage {stage}: {told}. Rollouts would teach nothing: change the rewards or the golds.")
    return [told] * bool(short)


def _final(answer: str, gold: str) -> str:
    """What is compared: the answer from its last box on; without one its last number or, for other golds, formula."""
    if boxes := list(BOX.finditer(answer)):
        return answer[boxes[-1].start() :]
    shown = NUMBER.findall(answer) if NUMBER.fullmatch(gold.strip()) else FORMULA.findall(answer[-10_000:])
    return f"\\boxed{{{shown[-1].strip('$%+')}}}" if shown else ""


def _formula(gold: str) -> str:
    """A gold between dollars, without which math-verify reads 3 of `3n`; a number, or prose, as it is."""
    is_formula = not NUMBER.fullmatch(gold) and re.search(r"[\\^_=+*/()\d]", gold) and not WORD.search(gold)
    return f"${gold}$" if is_formula and "$" not in gold and not BOX.search(gold) else gold


def _letter(answer: str) -> str | None:
    found = re.findall(r"\\boxed\s*\{\s*(?:\\text\s*\{)?\s*\(?([A-Z])\b", answer) or re.findall(r"\b([A-Z])\b", answer)
    return found[-1] if found else None


def signs(history: Sequence[dict[str, Any]]) -> list[str]:
    """Where accuracy falls while something else that the policy earns, or its length, rises: signs of reward hacking.

    `history` is what the trainer logged. The first quarter is compared with the last, of at least 4 entries each; less
    than three standard errors is no difference: a stage that is watched at every step shows a sign by mere chance in
    less than one case of a hundred. arXiv:2501.12948v2 B.5 shows such a run."""
    kept = re.compile(r"rewards/.+/mean|completions/(mean_length|clipped_ratio)").fullmatch
    watched = sorted({name for entry in history for name in entry if kept(name)}, reverse=True)
    moved = {name: _moved([entry[name] for entry in history if entry.get(name) is not None]) for name in watched}
    was, now = moved.pop(EARNED("accuracy"), None) or (0, 0)
    rose = {name: change for name, change in moved.items() if change and change[1] > change[0] and now < was}
    words = {name: re.sub("rewards/|completions/|/mean$", "", name).replace("_", " ") for name in rose}
    told = f"accuracy fell from {was:.3g} to {now:.3g} while {{}} rose from {{:.3g}} to {{:.3g}}"
    return [told.format(words[name], *change) for name, change in rose.items()]


def _moved(values: list[float]) -> tuple[float, float] | None:
    """Means of the first and the last quarter where they differ by three standard errors or more."""
    quarter = len(values) // 4
    if quarter < 4:
        return None
    first, last = values[:quarter], values[-quarter:]
    error = ((variance(first) + variance(last)) / quarter) ** 0.5
    before, after = fmean(first), fmean(last)
    return (before, after) if abs(after - before) >= max(3 * error, 1e-9) else None
