"""Arithmetic word problems with golds, and the step-by-step replies that the toy teacher learns to give.

A problem is a running total: it starts at the first number and every step adds, subtracts or multiplies.
Numbers, not only words, decide the split, so no held-out calculation occurs in training under other names.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "held-out"]
Operation = Literal["add", "subtract", "multiply"]

HELD_OUT_SHARE = 0.125
LARGEST_TOTAL = 99  # a student of 0.2 million parameters learns two digits within a minute, three not

NAMES = {"Mia": "She", "Ana": "She", "Sara": "She", "Tom": "He", "Ben": "He", "Leo": "He"}
ITEMS = ("pens", "books", "cards", "coins", "apples", "stamps")


@dataclass(frozen=True)
class Story:
    """One kind of question: its text, the range of each number, and the step each later number causes."""

    text: str
    ranges: tuple[tuple[int, int], ...]
    steps: tuple[tuple[Operation, int], ...]


STORIES = (
    Story(
        "{name} has {0} boxes with {1} {items} each. {She} gives away {2} {items}. How many {items} are left?",
        ((11, 29), (2, 5), (11, 59)),
        (("multiply", 1), ("subtract", 2)),
    ),
    Story(
        "{name} buys {0} boxes with {1} {items} each and finds {2} more. How many {items} does {name} have now?",
        ((11, 29), (2, 5), (11, 59)),
        (("multiply", 1), ("add", 2)),
    ),
    Story(
        "{name} has {0} {items} and finds {1} more. {She} gives away {2}. How many {items} are left?",
        ((11, 79), (11, 79), (11, 79)),
        (("add", 1), ("subtract", 2)),
    ),
    Story(
        "{name} has {0} {items}, gives away {1} and finds {2} more. How many {items} does {name} have now?",
        ((31, 99), (11, 79), (11, 79)),
        (("subtract", 1), ("add", 2)),
    ),
    Story(
        "{name} has {0} {items}. A friend has {1} more than {name}. How many {items} do they have in all?",
        ((11, 44), (11, 77)),
        (("add", 1), ("add", 0)),
    ),
    Story(
        "{name} has {0} boxes with {1} {items} each. {She} buys {2} more and gives away {3}. "
        "How many {items} are left?",
        ((11, 29), (2, 5), (11, 59), (11, 59)),
        (("multiply", 1), ("add", 2), ("subtract", 3)),
    ),
)


@dataclass(frozen=True)
class Problem:
    """A question with its gold answer, an integer written in digits."""

    question: str
    gold: str
    items: str
    numbers: tuple[int, ...]
    steps: tuple[tuple[Operation, int], ...]


def problems(n: int, seed: int = 0, split: Split = "train", *, carries: bool = True) -> list[Problem]:
    """The first n distinct problems of a seeded stream; the two splits share no calculation.

    Without `carries`, no addition carries and no subtraction borrows: a student learns these within a minute.
    """
    rng = random.Random(f"{split}:{seed}")
    found: dict[str, Problem] = {}
    while len(found) < n:
        story = rng.choice(STORIES)
        numbers = tuple(rng.randint(low, high) for low, high in story.ranges)
        name, items = rng.choice(list(NAMES)), rng.choice(ITEMS)
        totals = _totals(numbers, story.steps)
        if not all(2 <= total <= LARGEST_TOTAL for total in totals) or _split(story, numbers) != split:
            continue
        if not carries and _carries(totals, numbers, story.steps):
            continue
        question = story.text.format(*numbers, name=name, She=NAMES[name], items=items)
        found.setdefault(question, Problem(question, str(totals[-1]), items, numbers, story.steps))
    return list(found.values())


def _split(story: Story, numbers: tuple[int, ...]) -> Split:
    digest = hashlib.sha256(repr((story.steps, numbers)).encode()).digest()
    return "held-out" if digest[0] < 256 * HELD_OUT_SHARE else "train"


def _totals(numbers: tuple[int, ...], steps: tuple[tuple[Operation, int], ...]) -> list[int]:
    totals = [numbers[0]]
    for operation, index in steps:
        totals.append(right_result(operation, totals[-1], numbers[index]))
    return totals


def _carries(totals: list[int], numbers: tuple[int, ...], steps: tuple[tuple[Operation, int], ...]) -> bool:
    """Whether the ones of some step add up beyond nine, or need to borrow."""
    ones = [(operation, totals[place] % 10, numbers[index] % 10) for place, (operation, index) in enumerate(steps)]
    return any(
        (operation == "add" and left + right > 9) or (operation == "subtract" and left < right)
        for operation, left, right in ones
    )


def right_result(operation: str, left: int, right: int) -> int:
    return {"add": left + right, "subtract": left - right, "multiply": left * right}[operation]


# Weighted phrasings: the spread between them is what a lower temperature narrows.
_OPENINGS = (
    ("We need the number of {items} at the end.", 5),
    ("Let us go step by step.", 3),
    ("The question is how many {items} there are.", 2),
)
_STEPS: dict[str, tuple[tuple[str, int], ...]] = {
    "add": (("{when} add {right}: {work}.", 5), ("{when} we get {right} more: {work}.", 3)),
    "subtract": (("{when} take away {right}: {work}.", 5), ("{when} we lose {right}: {work}.", 3)),
    "multiply": (("{when} take {left} times {right}: {work}.", 5), ("{when} multiply by {right}: {work}.", 3)),
}
_TOTALS = (
    ("", 5),
    ("That makes {total} {items}.", 3),
    ("So now there are {total} {items}.", 2),
)
_CLOSINGS = (
    ("So there are {total} {items}.", 5),
    ("At the end there are {total} {items}.", 3),
    ("This leaves us with {total} {items}.", 2),
)


def reply(problem: Problem, rng: random.Random, calculate: Callable[[str, int, int], int] = right_result) -> str:
    """A reply in the released form: a think block of short sentences, one a line, then the answer.

    `calculate(operation, left, right)` does the arithmetic, so `no_arithmetic` gives the form without the skill.
    """
    lines = [_phrase(_OPENINGS, rng, items=problem.items)]
    total = problem.numbers[0]
    for place, (operation, index) in enumerate(problem.steps):
        left, right = total, problem.numbers[index]
        work, total = _work(operation, left, right, calculate)
        when = "Then" if place else "First"
        lines.append(_phrase(_STEPS[operation], rng, when=when, left=left, right=right, work=work))
        if place + 1 < len(problem.steps):
            lines.append(_phrase(_TOTALS, rng, total=total, items=problem.items))
    lines.append(_phrase(_CLOSINGS, rng, total=total, items=problem.items))
    return "<think>\n" + "\n".join(filter(None, lines)) + f"\n</think>\n\nThe answer is {total}."


def _work(operation: Operation, left: int, right: int, calculate: Callable[[str, int, int], int]) -> tuple[str, int]:
    """Tens and ones apart: small enough steps that a model of half a million parameters gets them right."""
    if operation == "multiply":
        tens, ones = left // 10 * 10, left % 10
        large, small = calculate("multiply", tens, right), calculate("multiply", ones, right)
        total = calculate("add", large, small)
        return f"{tens} times {right} is {large}, {ones} times {right} is {small}, together {total}", total
    word = "plus" if operation == "add" else "minus"
    tens, ones = right // 10 * 10, right % 10
    between = calculate(operation, left, tens)
    total = calculate(operation, between, ones)
    return f"{left} {word} {tens} is {between}, {word} {ones} is {total}", total


def no_arithmetic(operation: str, left: int, right: int) -> int:
    """The form without the skill: every result repeats the number it started from."""
    return left


def _phrase(weighted: tuple[tuple[str, int], ...], rng: random.Random, **values: object) -> str:
    texts, weights = zip(*weighted, strict=True)
    return str(rng.choices(texts, weights)[0]).format(**values)
