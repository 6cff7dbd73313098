"""The two tasks of the proof: their questions, and what their teachers and students are made from.

`words` are word problems of `builder.toy.task`, numbers checked by verifier `math`; their models are the toy's own.
`rows` are different in kind: a row of digits is rewritten step by step, and all of it is asked for, checked by verifier
`exact`. Its teacher spells a step out digit by digit in four of ten cases and writes down the new row alone in the
others, so that replies differ in length. Both students have learnt the form of a reply and none of the skill.

Questions come in three parts: those whose replies train, `tuning`, on which sizes and rates of this proof were chosen,
and `held-out`, which nothing but the tables of the proof has seen.
"""

import fcntl
import hashlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from builder.toy.task import Problem, problems
from builder.toy.train import TEACHER, Drawn, fit, load, make_student, save

Part = Literal["train", "tuning", "held-out"]

TUNING_SEED = 1_000_003  # of no run
DIGITS, STEPS = 3, 2  # of a question
STEP = (0, 1, -1)  # what is added to every digit, or 0 for a first digit that goes to the end
SPELLED_OUT = 0.4  # of the steps that add or take away
TEACHER_STEPS, FORM_STEPS, BATCH = 2000, 60, 16


def word_problems(n: int, seed: int, part: Part = "train") -> Drawn:
    """Problems without carries and without products, which a student of this size learns from a thousand rows.

    Tuning problems come from the training pool by a seed of their own; `run.py` leaves out those that a run trains on.
    """
    drawn, split = (TUNING_SEED, "train") if part == "tuning" else (seed, part)
    found: Drawn = []
    size = n
    while len(found) < n:
        size *= 2
        every = problems(size, drawn, "held-out" if split == "held-out" else "train", carries=False)
        found = [problem for problem in every if all(operation != "multiply" for operation, _ in problem.steps)]
    return found[:n]


def row_problems(n: int, seed: int, part: Part = "train") -> Drawn:
    """The first n distinct problems of a seeded stream; a hash of row and steps decides the part.

    Digits stay digits: steps that would lead out of 0 to 9 are drawn again.
    """
    rng = random.Random(f"rows:{part}:{seed}")
    found: dict[str, Problem] = {}
    while len(found) < n:
        row = [rng.randrange(10) for _ in range(DIGITS)]
        numbers = tuple(rng.choice(STEP) for _ in range(STEPS))
        after = rows(row, numbers)
        said = " ".join(f"{_step(place, number)}." for place, number in enumerate(numbers))
        question = f"There are {_shown(row)}. {said} How are they now?"
        if all(0 <= digit <= 9 for one in after for digit in one) and _part(question) == part:
            found.setdefault(question, Problem(question, _shown(after[-1]), _shown(row), numbers, ()))
    return list(found.values())


def rows(row: list[int], numbers: tuple[int, ...]) -> list[list[int]]:
    """The row after each step."""
    found = [row]
    for number in numbers:
        last = found[-1]
        found.append([digit + number for digit in last] if number else [*last[1:], last[0]])
    return found[1:]


def row_reply(problem: Problem, rng: random.Random, *, skill: bool = True) -> str:
    """A reply in the released form; without `skill` the row stays as it was."""
    row = [int(digit) for digit in problem.items.split()]
    after = rows(row, problem.numbers) if skill else [row] * STEPS
    lines = [rng.choice(("Let us go step by step.", "We need them in order.", f"There are {problem.items}."))]
    for place, number in enumerate(problem.numbers):
        new = after[place]
        told = f"{_step(place, number)}: "
        if number and rng.random() < SPELLED_OUT:
            word = "plus" if number > 0 else "minus"
            each = ", ".join(f"{one} {word} {abs(number)} is {two}" for one, two in zip(row, new, strict=True))
            told += f"{each}, together "
        lines.append(f"{told}{_shown(new)}.")
        row = new
    lines.append(rng.choice(("So there are {}.", "This leaves us with {}.")).format(_shown(row)))
    return "<think>\n" + "\n".join(lines) + f"\n</think>\n\nThe answer is {_shown(row)}."


def _step(place: int, number: int) -> str:
    told = f"add {number}" if number > 0 else f"take away {-number}" if number else "get the end"
    return f"{'Then' if place else 'First'} {told}"


def _shown(row: list[int]) -> str:
    return " ".join(map(str, row))


def _form(problem: Problem, rng: random.Random) -> str:
    return row_reply(problem, rng, skill=False)


def _part(question: str) -> Part:
    first = hashlib.sha256(question.encode()).digest()[0]
    return "held-out" if first >= 224 else "tuning" if 32 <= first < 64 else "train"


def row_teacher(out: Path, seed: int, log: Callable[[str], None]) -> None:
    """The toy's teacher, taught rows. Five minutes."""
    model, tokenizer = load(TEACHER)
    fit(
        model, tokenizer, row_reply, steps=TEACHER_STEPS, batch=BATCH, lr=2e-3, seed=seed, threads=1,
        draw=row_problems, log=log,
    )  # fmt: skip
    save(model, tokenizer, out)


def row_student(out: Path, seed: int) -> None:
    """The toy's student, taught the form of replies about rows."""
    model, tokenizer = load(make_student(out, seed=seed, threads=1))
    fit(
        model, tokenizer, _form, steps=FORM_STEPS, batch=BATCH, lr=5e-3, seed=seed, threads=1,
        draw=row_problems,
    )  # fmt: skip
    save(model, tokenizer, out)


def student(task: str, out: Path, seed: int) -> None:
    """The student of a task, from nothing but the seed."""
    make_student(out, seed=seed, threads=1) if task == "words" else row_student(out, seed)


def teacher(task: str, out: Path, kept: Path, log: Callable[[str], None]) -> None:
    """The teacher of a task: the toy's own, or one for all seeds, which `kept` keeps by the hash of this file."""
    if task == "words":
        shutil.copytree(TEACHER, out)
        return
    kept.mkdir(parents=True, exist_ok=True)
    with (kept / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        place = kept / hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
        if not place.is_dir():
            partial = kept / ".partial"
            shutil.rmtree(partial, ignore_errors=True)
            row_teacher(partial, 0, log)
            partial.rename(place)
        shutil.copytree(place, out)
