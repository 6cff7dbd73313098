"""A run whose replies break the text rules in every way: synthetic texts of 7 kB on average, one in eight with a flaw.

Sentences are those of `features.py`. Flaws stand on both sides of their rule's threshold.
"""

import random
from collections.abc import Callable
from typing import Final

import pyarrow as pa
from features import sentence

from builder.schema import TABLES
from builder.store import Run, columns_table

POOL: Final = 60_000
PART_ROWS: Final = 10_000
FLAWED: Final = 0.125
Reply = dict[str, str | None]
_CHINESE: Final = "我们需要计算这个数的平方根然后再加上一个常数所以答案就是十二现在检查每一步是否正确"


def write_run(run: Run, rows: int) -> float:
    """Write prompts and responses of the run; how many MB of text the replies hold."""
    draw = random.Random(0)
    pool = [sentence(draw) for _ in range(POOL)]
    size, replies = 0, []
    for number in range(rows):
        reply: Reply = {
            "reasoning": _text(draw, pool),
            "answer": f"So the answer, i.e. the sum, is {number}.",
            "finish": "stop",
        }
        if draw.random() < FLAWED:
            draw.choice(_FLAWS)(draw, reply)
        size += sum(len((reply[name] or "").encode()) for name in ("reasoning", "answer"))
        replies.append(reply)
        if len(replies) == PART_ROWS or number == rows - 1:
            _append(run, number + 1 - len(replies), replies)
            replies = []
    return size / 1e6


def _text(draw: random.Random, pool: list[str]) -> str:
    """A reasoning of 0.2 to 14 kB."""
    return "".join(draw.choices(pool, k=draw.randint(2, 155))).strip()


def _append(run: Run, first: int, replies: list[Reply]) -> None:
    ids = [f"{first + place:032x}" for place in range(len(replies))]
    empty = {
        field.name: pa.nulls(len(ids), field.type)
        if field.nullable
        else pa.array([[]] * len(ids), field.type)
        if pa.types.is_list(field.type)
        else pa.repeat(pa.scalar(0).cast(field.type), len(ids))
        for field in TABLES["prompts"].schema
    }
    schema = TABLES["prompts"].schema
    run.append("prompts", pa.table(empty | {"prompt_id": ids}, schema=schema))
    run.append("responses", columns_table("responses", [{
        "response_id": name, "prompt_id": name, "role": "teacher", "model": "m", "sample_index": 0, "temperature": 1.0,
        "reasoning": reply["reasoning"], "answer": reply["answer"], "finish_reason": reply["finish"],
        "reasoning_format": "field", "completion_tokens": 1, "max_tokens": 2, "tool_calls": 0,
        "replaced_characters": 0, "prefix_chars": 0,
    } for name, reply in zip(ids, replies, strict=True)]))  # fmt: skip


def _set(name: str, value: str | None) -> Callable[[random.Random, Reply], None]:
    def flaw(_: random.Random, reply: Reply) -> None:
        reply[name] = value

    return flaw


def _end(ending: Callable[[random.Random], str], name: str = "reasoning") -> Callable[[random.Random, Reply], None]:
    """The part of the reply ends in this as well."""

    def flaw(draw: random.Random, reply: Reply) -> None:
        reply[name] = f"{reply[name]}\n\n{ending(draw)}"

    return flaw


def _short(draw: random.Random, reply: Reply) -> None:
    reply["reasoning"], reply["answer"] = "x" * draw.randint(97, 100), "4"


def _chinese(draw: random.Random, reply: Reply) -> None:
    """In Chinese, with more or less English in it."""
    text = "。".join("".join(draw.choices(_CHINESE, k=draw.randint(8, 30))) for _ in range(40))
    reply["reasoning"], reply["answer"] = text + " english" * draw.randint(0, 90), "答案是十二。"


_FLAWS: Final[list[Callable[[random.Random, Reply], None]]] = [
    _set("finish", "length"),
    _set("finish", None),
    _set("reasoning", None),
    _set("reasoning", "  "),
    _set("answer", None),
    _set("answer", ""),
    _end(lambda _: "Hm </think> so."),
    _end(lambda _: "<|channel|>final"),
    _short,
    _chinese,
    _end(lambda draw: "word " * draw.randint(395, 405)),
    _end(lambda draw: " ".join(["Это же так и есть,"] * draw.randint(0, 3)) + " fine."),
    _end(lambda draw: "Wait, let me check this again. " * draw.randint(7, 12)),
    _end(lambda draw: "Wait, is the value $x$ right?\n" * draw.randint(7, 12) + "No."),
    _end(lambda draw: "\n\n".join(["this  paragraph comes again, " * 3] * draw.randint(2, 4)) + "\n\nend"),
    _end(lambda draw: " ".join(f"so it is {n % 7} and" for n in range(draw.randint(110, 135)))),
    _end(lambda draw: " ".join(draw.choices(["one", "or", "two"], k=draw.randint(200, 3000)))),
    _end(lambda draw: "no way, " * draw.randint(38, 42), "answer"),
    _end(lambda draw: "A block of a loop that ends it all\n" * draw.randint(3, 30)),
    _end(lambda _: "It costs $5 and $7 or \\(a + b\\), e.g. 3.5 of them etc. and so on.\n 1. First\n 2. Then"),
    _end(lambda draw: "```python\n" + "value = compute_something(1)\n" * draw.randint(5, 15), "answer"),
]
