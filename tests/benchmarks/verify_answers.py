"""The part of `verify.py` that compares answers with golds: verdicts a second and core, beside bare math-verify.

All arms judge the same answers, one after the other, three times; the least processor time counts, children included.
Bare math-verify gets gold and the final text as its README shows; it has neither a deadline that holds nor a second
opinion. Its import counts in ours, where a worker starts with the first reply that is left open; the first line says
how long that takes.
"""

import logging
import resource
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agreement import answers, read

from builder.verify import Item, math_verify_pool, verify_answers

ROUNDS = 3


def measure_answers(data: Path) -> None:
    """Print both measurements; `data` is a folder with `questions/` and `responses/`, see `docs/verification.md`."""
    measure_math(data / "responses")
    measure_ifeval(data)


def measure_math(folder: Path) -> None:
    """Ours and bare math-verify on the same labelled replies, with how often each agrees with the labels."""
    started, _, _ = best(_ours, [Item(r"\sqrt{8}", r"\boxed{2\sqrt{2}}", "math")])
    print(f"math: one worker starts in {started:.2f} processor seconds")
    for name in ("math_many_samples", "qwen3b_think_tags"):
        labelled = list(answers(folder / f"{name}.jsonl.gz", "math", "score"))
        items = [one.item for one in labelled]
        for arm, judge in (("builder", _ours), ("math-verify alone", _bare)):
            seconds, wall_s, verdicts = best(judge, items)
            agreed = sum((verdict == "correct") == one.label for verdict, one in zip(verdicts, labelled, strict=True))
            print(
                f"math: {name:18} {arm:18} {len(items) / seconds:6,.0f} verdicts/s a core ({seconds:.2f} s, "
                f"wall {wall_s:.2f} s), {agreed} of {len(items)} as labelled, {dict(Counter(verdicts))}",
                flush=True,
            )


def measure_ifeval(data: Path) -> None:
    """Verdicts of ifeval, and of language on the same replies."""
    golds = {row["prompt"]: row["gold"] for row in read(data / "questions/ifeval_en.jsonl.gz")}
    rows = list(read(data / "responses/ifeval_small_models_en.jsonl.gz"))
    for name, items in (
        ("ifeval", [Item(golds[row["prompt"]], row["response"], "ifeval") for row in rows]),
        ("language", [Item("en", row["response"], "language") for row in rows]),
    ):
        seconds, _, _ = best(_ours, items)
        print(f"{name}: {len(items) / seconds:,.0f} verdicts/s a core")


def best(judge: Callable[[list[Item]], list[str]], items: list[Item]) -> tuple[float, float, list[str]]:
    """Least processor and wall seconds of the rounds, and the verdicts."""
    spent, wall = [], []
    verdicts: list[str] = []
    for _ in range(ROUNDS):
        began, clock = _processor_s(), time.perf_counter()
        verdicts = judge(items)
        spent.append(_processor_s() - began)
        wall.append(time.perf_counter() - clock)
    return min(spent), min(wall), verdicts


def _ours(items: list[Item]) -> list[str]:
    with math_verify_pool(workers=1) as pool:
        return [outcome.verdict for outcome in verify_answers(items, pool)]


def _bare(items: list[Item]) -> list[str]:
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    found = []
    for item in items:
        gold: Any = parse(f"${item.gold}$")
        found.append("correct" if verify(gold, parse(item.answer or "")) else "wrong")
    return found


def _processor_s() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
