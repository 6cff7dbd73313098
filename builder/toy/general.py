"""Prompts without a gold for the toy models: how does a story end? A good end says what of, as preferences can teach.

All words are those of the arithmetic task, which the tokenizers know.
"""

import json
import random
from itertools import product
from typing import Any, Final

from builder.toy.task import ITEMS, NAMES, Problem, Split

_ASKS: Final = (
    "{name} gives {number} {items} away. How does this end?",
    "{name} buys {number} {items} with a friend. How does this end?",
    "{name} finds {number} {items}. How does this end?",
)
CLEAR: Final = ("There are {items} left.", "They have the {items} now.", "The {items} are with a friend.")
VAGUE: Final = ("There are more left.", "They have all now.", "All are with a friend.")


def stories(n: int, seed: int = 0, split: Split = "train") -> list[Problem]:
    """The first n of the stories of a split in a seeded order; the splits share no number.

    `gold` are the things that it is about: who reads an end can look for them.
    """
    numbers = [number for number in range(11, 100) if (number % 8 == 3) == (split == "held-out")]
    found = []
    for ask, name, items, number in product(_ASKS, NAMES, ITEMS, numbers):
        found.append(Problem(ask.format(name=name, number=number, items=items), items, items, (number,), ()))
    random.Random(f"stories:{split}:{seed}").shuffle(found)
    return found[:n]


def tell(problem: Problem, rng: random.Random, clear: float, thinks: float = 1.0) -> str:
    """An end that names the things with probability `clear`, after a thought with probability `thinks`."""
    text = rng.choice(CLEAR if rng.random() < clear else VAGUE).format(items=problem.items)
    thought = rng.choice(("Let us go step by step.", "We need the end of this."))
    return (f"<think>\n{thought}\n</think>\n\n" if rng.random() < thinks else "") + text


def prompt_row(problem: Problem) -> dict[str, Any]:
    """A prompt as training sees it: without a gold, for nothing decides whether an end is right."""
    return {"prompt": problem.question, "domain": "general", "language": "en", "license": "apache-2.0"}


def measured_row(problem: Problem) -> dict[str, Any]:
    """The same for an evaluation that asks whether the things are named."""
    checks = [{"id": "keywords:existence", "kwargs": {"keywords": [problem.gold]}}]
    return prompt_row(problem) | {"gold": json.dumps(checks), "gold_type": "ifeval"}
