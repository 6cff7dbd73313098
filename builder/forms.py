r"""Forms that a reply may have to keep: thinking apart from the answer, an answer tag, a box, JSON, code.

As the format rewards of R1 (arXiv:2501.12948 section 2.2.2) and open-r1 have them, for replies whose thinking may stand
in a field of its own.
"""

import json
import re
from typing import Final

from builder.answers import last_boxed
from builder.text import split_reasoning

FORMS: Final = {
    "think": "thinking that is closed, then an answer; no think tag inside either",
    "no_think": "an answer without thinking",
    "answer_tag": "the answer inside the only <answer>…</answer>, nothing after it",
    "boxed": r"a balanced \boxed{} that is not empty",
    "json": "the answer is JSON, in a fence or not",
    "code": "a fenced block that is closed",
}
"""What each form asks."""

_TAG: Final = re.compile(r"</?think>", re.IGNORECASE)


def has_form(name: str, reasoning: str | None, answer: str | None) -> bool:
    """Whether a reply has a form; tags inside `answer` are read where there is no `reasoning`. Raises KeyError."""
    if not reasoning:
        reasoning, answer, _ = split_reasoning(answer or "")
    thinking, final = (reasoning or "").strip(), (answer or "").strip()
    return bool(final) and _CHECKS[name](thinking, final)


def _think(thinking: str, final: str) -> bool:
    return bool(thinking) and not _TAG.search(thinking) and not _TAG.search(final)


def _no_think(thinking: str, final: str) -> bool:
    return not thinking and not _TAG.search(final)


def _answer_tag(_thinking: str, final: str) -> bool:
    before, _, rest = final.partition("<answer>")
    inside, closed, after = rest.partition("</answer>")
    return bool(inside.strip()) and bool(closed) and not after.strip() and "<answer>" not in inside + before


def _boxed(_thinking: str, final: str) -> bool:
    return bool(last_boxed(final))


def is_json(text: str) -> bool:
    """Whether a text is JSON, in a Markdown fence or not."""
    text = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE)
    try:
        json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False
    return True


def _no_constant(name: str) -> None:
    """NaN and Infinity are Python's, not JSON's."""
    raise ValueError(name)


def _json(_thinking: str, final: str) -> bool:
    return is_json(final)


def _code(_thinking: str, final: str) -> bool:
    lines = [line.strip() for line in final.split("\n")]
    opened = next((index for index, line in enumerate(lines) if line.startswith("```")), None)
    return opened is not None and "```" in lines[opened + 1 :]


_CHECKS: Final = {
    "think": _think,
    "no_think": _no_think,
    "answer_tag": _answer_tag,
    "boxed": _boxed,
    "json": _json,
    "code": _code,
}
