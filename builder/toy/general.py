"""Prompts without a gold for the toy models: greetings. A good one says the name: what a preference can teach."""

import json
import random
from itertools import product
from typing import Any, Final

from builder.toy.task import ITEMS, NAMES, Problem, Split

_ASKS: Final = (
    "{name} comes by with {number} {items}. Greet {name}.",
    "{name} brings {number} {items}. Say hello to {name}.",
    "{name} wants to see {number} {items}. Welcome {name}.",
)
NAMED: Final = ("Hello {name}!", "Good day, {name}!", "{name}, how nice to see you!")
PLAIN: Final = ("Hello.", "Good day.", "Hi there.")


def greetings(n: int, seed: int = 0, split: Split = "train") -> list[Problem]:
    """The first n of the greetings of a split in a seeded order; the splits share no number.

    `gold` is the name: who reads a greeting can look for it.
    """
    numbers = [number for number in range(11, 100) if (number % 8 == 3) == (split == "held-out")]
    found = []
    for ask, name, items, number in product(_ASKS, NAMES, ITEMS, numbers):
        found.append(Problem(ask.format(name=name, number=number, items=items), name, items, (number,), ()))
    random.Random(f"greetings:{split}:{seed}").shuffle(found)
    return found[:n]


def greet(problem: Problem, rng: random.Random, named: float, thinks: float = 1.0) -> str:
    """A greeting that says the name with probability `named`, after a thought with probability `thinks`."""
    text = rng.choice(NAMED if rng.random() < named else PLAIN).format(name=problem.gold)
    thought = rng.choice(("We greet {name}.", "A short greeting is asked for."))
    return (f"<think>\n{thought.format(name=problem.gold)}\n</think>\n\n" if rng.random() < thinks else "") + text


def prompt_row(problem: Problem) -> dict[str, Any]:
    """A prompt as training sees it: without a gold, for nothing decides whether a greeting is right."""
    return {"prompt": problem.question, "domain": "general", "language": "en", "license": "apache-2.0"}


def measured_row(problem: Problem) -> dict[str, Any]:
    """The same for an evaluation that asks whether the name is said."""
    checks = [{"id": "keywords:existence", "kwargs": {"keywords": [problem.gold]}}]
    return prompt_row(problem) | {"gold": json.dumps(checks), "gold_type": "ifeval"}
