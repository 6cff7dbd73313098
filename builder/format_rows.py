"""Rows of a release → rows that other tools read. Pure functions; what a format cannot say is refused, never dropped.

Text is handed on as released, so the completion is what the trainer of this project trains. JSON Lines have no null:
`datasets` takes the type of a column from its first rows, and fails where nulls come first.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import pyarrow as pa

from builder.text import THINK_OPEN

Row = dict[str, Any]


class Unfit(Exception):
    """A row that the format cannot express: `why`, in the same words for all such rows, and what is so in this one."""

    def __init__(self, why: str, detail: str = "") -> None:
        super().__init__(why)
        self.why, self.detail = why, detail


@dataclass(frozen=True)
class Told:
    """What a converter is told of the stage, and where it counts what a reader of the rows must know, by sentence."""

    kind: str
    system_prompt: str | None
    notes: Counter[str] = field(default_factory=Counter)


Convert = Callable[[Row, Told], Row]
_META_LACKS: Final = ("prompt", "completion", "response_id", "domain")
MIXED: Final = (
    "rows begin with text that the student wrote (mixed policy). It is trained like the rest, as the paper does; the "
    "format has no mask for it"
)
TURNS: Final = "rows have earlier replies in their prompts, which tools train as well unless they are told not to"
NO_THINKING: Final = "rows hold an answer without a think block; all rows of DASD's own set begin with one"
SYSTEM: Final = "rows were released with the system prompt of the student, which the format has no column for"


def dasd(row: Row, told: Told) -> Row:
    """Columns of Alibaba-Apsara/Superior-Reasoning-SFT-gpt-oss-120b, all strings: uuid, input, output, domain, meta.

    The student's own system prompt is left to the training configuration, as in that set. `meta` is a JSON object of
    the other columns of the release.
    """
    prompt = row["prompt"]
    if told.system_prompt and prompt[0] == {"role": "system", "content": told.system_prompt}:
        prompt = prompt[1:]
        told.notes[SYSTEM] += 1
    if [message["role"] for message in prompt] != ["user"]:
        raise Unfit("hold more than one user message, and column `input` is no more than that", _roles(row["prompt"]))
    output = _completion(row, told)
    if not output.startswith(THINK_OPEN):
        told.notes[NO_THINKING] += 1
    meta = {name: value for name, value in row.items() if name not in _META_LACKS}
    return {
        "uuid": row["response_id"],
        "input": prompt[0]["content"],
        "output": output,
        "domain": row["domain"] or "",
        "meta": msgspec.json.encode(meta, order="sorted").decode(),
    }


def messages(row: Row, told: Told) -> Row:
    """`messages` with the reply last; of prompts for reinforcement `prompt, solution`, of pairs `prompt, chosen,
    rejected`, as TRL names them."""
    if told.kind == "reward":
        return {name: row[name] for name in ("prompt", "chosen", "rejected")}
    if told.kind == "grpo":
        others = ("gold_type", "verifier", "language", "domain")
        return {
            "prompt": row["prompt"],
            "solution": row["solution"],
            **{name: row[name] or "" for name in others},
            "prompt_id": row["prompt_id"],
        }
    _completion(row, told)
    return {
        "messages": [*row["prompt"], *row["completion"]],
        "response_id": row["response_id"],
        "prompt_id": row["prompt_id"],
        "domain": row["domain"] or "",
        "model": row["teacher"],
        "temperature": row["temperature"],
        "license": row["source_license"] or "",
    }


def alpaca(row: Row, told: Told) -> Row:
    """Columns of LLaMA-Factory's alpaca format; `input` stays empty, as it would be joined to `instruction`."""
    system, turns = _turns(row["prompt"])
    shared = {
        "instruction": turns[-1]["content"],
        "input": "",
        "system": system,
        "history": [[turns[i]["content"], turns[i + 1]["content"]] for i in range(0, len(turns) - 1, 2)],
    }
    if told.kind == "reward":
        return {**shared, **{name: row[name][0]["content"] for name in ("chosen", "rejected")}}
    output = _completion(row, told)
    return {**shared, "output": output, "domain": row["domain"], "response_id": row["response_id"]}


def sharegpt(row: Row, told: Told) -> Row:
    """Columns of LLaMA-Factory's sharegpt format: `conversations` from human and gpt in turn, `system` apart."""
    system, turns = _turns(row["prompt"])
    names = {"user": "human", "assistant": "gpt"}
    said = [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns]
    if told.kind == "reward":
        pair = {name: {"from": "gpt", "value": row[name][0]["content"]} for name in ("chosen", "rejected")}
        return {"conversations": said, "system": system, **pair}
    said.append({"from": "gpt", "value": _completion(row, told)})
    return {
        "conversations": said,
        "system": system,
        "domain": row["domain"],
        "response_id": row["response_id"],
    }


def _completion(row: Row, told: Told) -> str:
    if row["prefix_chars"]:
        told.notes[MIXED] += 1
    if any(message["role"] == "assistant" for message in row["prompt"]):
        told.notes[TURNS] += 1
    return str(row["completion"][0]["content"])


def _turns(prompt: list[Mapping[str, str]]) -> tuple[str, list[Mapping[str, str]]]:
    """System prompt, empty where there is none, and the turns behind it: user and assistant in turn, a user's last."""
    has_system = bool(prompt) and prompt[0]["role"] == "system"
    turns = prompt[1:] if has_system else prompt
    expected = ["user" if place % 2 == 0 else "assistant" for place in range(len(turns))]
    if len(turns) % 2 == 0 or [turn["role"] for turn in turns] != expected:
        raise Unfit("hold prompts that are no turns of user and assistant, one after the other", _roles(prompt))
    return prompt[0]["content"] if has_system else "", turns


def _roles(prompt: list[Mapping[str, str]]) -> str:
    return ", ".join(message["role"] for message in prompt)


_TEXT: Final = pa.string()
_SAID: Final = pa.struct([("from", _TEXT), ("value", _TEXT)])
_IDENTITY: Final = [("domain", _TEXT), ("response_id", _TEXT)]
_ALPACA: Final = [("instruction", _TEXT), ("input", _TEXT), ("system", _TEXT), ("history", pa.list_(pa.list_(_TEXT)))]
_SHAREGPT: Final = [("conversations", pa.list_(_SAID)), ("system", _TEXT)]
SCHEMAS: Final[dict[str, dict[str, pa.Schema]]] = {
    "alpaca": {
        "sft": pa.schema([*_ALPACA, ("output", _TEXT), *_IDENTITY]),
        "reward": pa.schema([*_ALPACA, ("chosen", _TEXT), ("rejected", _TEXT)]),
    },
    "sharegpt": {
        "sft": pa.schema([*_SHAREGPT, *_IDENTITY]),
        "reward": pa.schema([*_SHAREGPT, ("chosen", _SAID), ("rejected", _SAID)]),
    },
}
"""Formats that are written as Parquet, by kind of stage. Of JSON, `datasets` takes an empty `history` for a column of
nulls, and fails at the first conversation that comes more than 10 MB later (measured with 5.2)."""
