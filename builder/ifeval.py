"""IFEval-style constraints: does a reply follow every instruction that its gold lists?

A gold is a JSON list of `{"id": "punctuation:no_comma", "kwargs": {}}`, as in the benchmark's own files; a language
prefix (`en:punctuation:no_comma`, M-IFEval) is ignored, and so are arguments that are null.

The verdict is strict: the text as it stands must follow. The vote `loose` is the benchmark's upper bound, each
instruction on its own: also without first or last line, and without asterisks (Zhou et al., arXiv:2311.07911).
"""

import json
from dataclasses import dataclass
from typing import Any

from builder.ifeval_checks import CHECKS, arguments_fit


@dataclass(frozen=True)
class Instruction:
    """One instruction: a name in `CHECKS` and its arguments."""

    name: str
    arguments: dict[str, Any]

    def is_followed(self, text: str) -> bool:
        return bool(text.strip()) and CHECKS[self.name][0](text, **self.arguments)


def read_instructions(gold: str) -> list[Instruction] | None:
    """The instructions of a gold; None where it is no list of instructions known here with arguments that fit."""
    try:
        listed = json.loads(gold)
    except (ValueError, RecursionError):
        return None
    if not isinstance(listed, list) or not listed:
        return None
    found = [_read(item) for item in listed]
    known = [item for item in found if item is not None]
    return known if len(known) == len(found) else None


def readings(text: str) -> list[str]:
    """The text, and without first line, last line or both, each also without asterisks."""
    lines = text.split("\n")
    cut = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cut, *(part.replace("*", "") for part in cut)]


def _read(item: Any) -> Instruction | None:
    if not isinstance(item, dict) or not isinstance(item.get("id"), str):
        return None
    given = item.get("kwargs") or {}
    name = ":".join(item["id"].split(":")[-2:])
    if name not in CHECKS or not isinstance(given, dict):
        return None
    arguments = {key: value for key, value in given.items() if value is not None}
    return Instruction(name, arguments) if arguments_fit(name, arguments) else None
