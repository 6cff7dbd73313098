"""What the formats of `builder import` have in common: a reply from its texts, a prompt from its turns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import msgspec

from builder.dialect import MOST, clean, short
from builder.identity import normalize_messages
from builder.import_files import BadRow, Row
from builder.reply import Reply, split_channels
from builder.text import split_reasoning

_ROLES: Final = ("system", "user", "assistant", "tool", "developer")
_SHAREGPT: Final = {"human": "user", "gpt": "assistant"}
_THOUGHT, _THOUGHT_END = "<|begin_of_thought|>", "<|end_of_thought|>"
_SOLUTION, _SOLUTION_END = "<|begin_of_solution|>", "<|end_of_solution|>"
PROMPT_COLUMNS: Final = ("domain", "gold", "gold_type", "verifier", "language", "license")


@dataclass(frozen=True, slots=True)
class Given:
    """One reply as a file gives it. `messages` are normalised; `prompt` and `facts` are columns of the tables.

    `tokens` has the reply's tokens with logprobs; `uuid` is what a companion file names the reply by.
    """

    messages: list[dict[str, str]]
    reasoning: str | None
    answer: str | None
    reasoning_format: str
    prompt: Mapping[str, str | None] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    tokens: Reply | None = None
    uuid: str | None = None


def given(
    messages: list[dict[str, str]],
    content: Any,
    *,
    thinking: Any = None,
    prompt: Mapping[str, str | None] | None = None,
    facts: Mapping[str, Any] | None = None,
    uuid: str | None = None,
) -> Given:
    """A reply from its text. Raises BadRow where there is none."""
    if content is not None and not isinstance(content, str):
        raise BadRow(f"has a reply that is no text but {type(content).__name__}")
    said, replaced = clean(content)
    thought, replaced_thought = clean(thinking)
    reasoning, answer, form = _parts(said or "", thought)
    facts = {**(facts or {}), "replaced_characters": replaced + replaced_thought}
    if reasoning is None and answer is None and not facts.get("tool_calls"):
        raise BadRow("holds no reply")
    return Given(messages, reasoning, answer, form, prompt or {}, facts, uuid=uuid)


def _parts(said: str, thought: str | None) -> tuple[str | None, str | None, str]:
    """Reasoning, answer and reasoning format, as `builder.reply.parse_reply` splits what endpoints send."""
    if thought and thought.strip():
        return thought.strip(), said.strip() or None, "field"
    head, opened, rest = said.partition(_THOUGHT)
    if opened and not head.strip():
        inside, closed, after = rest.partition(_THOUGHT_END)
        if not closed:
            return inside.strip() or None, None, "unclosed"
        after = after.strip().removeprefix(_SOLUTION).removesuffix(_SOLUTION_END)
        return inside.strip() or None, after.strip() or None, "tags"
    if (channels := split_channels(said)) is not None:
        return channels[0], channels[1], "tags" if channels[1] is not None else "unclosed"
    return split_reasoning(said)


def last_turn(turns: list[Any], **more: Any) -> Given:
    """The last turn as the reply, all before it as the prompt. Raises BadRow where it is not the assistant's."""
    last = turns[-1]
    role = last.get("role") if isinstance(last, dict) else None
    if role not in ("assistant", "gpt"):
        raise BadRow(f"ends with a turn of role {role}, so it holds no reply")
    messages = messages_of(turns[:-1]) if len(turns) > 1 else []
    if not any(message["role"] == "user" and message["content"] for message in messages):
        raise BadRow("has no question before its last turn")
    thinking = next((last[name] for name in ("reasoning_content", "reasoning", "thinking") if last.get(name)), None)
    if thinking is not None and not isinstance(thinking, str):
        raise BadRow(f"has reasoning that is no text but {type(thinking).__name__}")
    facts = {**more.pop("facts", {}), "tool_calls": len(last.get("tool_calls") or ())}
    return given(messages, _content(last), thinking=thinking, facts=facts, **more)


def messages_of(turns: list[Any]) -> list[dict[str, str]]:
    """Turns as messages, normalised as prompts are."""
    found = []
    for turn in turns:
        role = turn.get("role") if isinstance(turn, dict) else None
        role = _SHAREGPT.get(role, role) if isinstance(role, str) else None
        if role not in _ROLES:
            raise BadRow(f"has a turn without a role of {', '.join(_ROLES)}: {short(turn)}")
        content = _content(turn)
        if clean(content)[1]:
            raise BadRow("has a lone surrogate in its prompt, which no file of text can hold")
        found.append({"role": role, "content": content})
    if not found:
        raise BadRow("has no messages")
    return normalize_messages(found)


def _content(turn: Row) -> str:
    """The text of a turn: a string, or OpenAI's list of text parts."""
    content = turn.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text") or "") for part in content)
    if content is None and (turn.get("tool_calls") or turn.get("reasoning_content") or turn.get("reasoning")):
        return ""
    if not isinstance(content, str):
        raise BadRow(f"has a turn that is no text: {short(turn)}")
    return content


def turns_of(value: Any, role: str, column: str) -> list[Any]:
    """A text as one turn of this role; a list as it is. Raises BadRow for anything else."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list):
        raise BadRow(f"has no {column}" if value is None else f"has a {column} that is neither text nor messages")
    return value


def list_in(row: Row, column: str) -> list[Any]:
    """A list that is not empty. Raises BadRow."""
    value = row.get(column)
    if not isinstance(value, list) or not value:
        raise BadRow(f"has no list {column!r}; it has {', '.join(sorted(row)) or 'no columns'}")
    return value


def text_in(row: Row, column: str) -> str:
    """A text that is not blank. Raises BadRow."""
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"has no text in column {column!r}; it has {', '.join(sorted(row)) or 'no columns'}")
    return value


def optional(row: Row, column: str) -> str | None:
    """A value as text; None where there is none."""
    value = row.get(column)
    return None if value is None or value == "" else clean(str(value))[0]


def prompt_columns(row: Row, *columns: str) -> dict[str, str | None]:
    """These columns of `prompts` as the row has them."""
    found = {column: optional(row, column) for column in columns}
    if "license" in found and found["license"] is None:
        found["license"] = optional(row, "licence")
    return found


_Count = Annotated[int, msgspec.Meta(ge=0, le=MOST)]


class _Facts(msgspec.Struct):
    """Columns of `responses` that a row may state, in the types and ranges of the table."""

    model: str | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    sample_index: _Count | None = None
    max_tokens: _Count | None = None
    finish_reason: str | None = None
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None


def facts_of(row: Row) -> dict[str, Any]:
    """What a row states of a reply. Raises BadRow for a value that the table cannot hold."""
    try:
        found = msgspec.convert({name: row.get(name) for name in _Facts.__struct_fields__}, _Facts)
    except msgspec.ValidationError as error:
        raise BadRow(f"has a value that cannot be ({error})") from None
    values = msgspec.structs.asdict(found).items()
    return {name: clean(value)[0] if isinstance(value, str) else value for name, value in values if value is not None}
