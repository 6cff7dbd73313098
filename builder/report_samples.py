"""Replies with their text for the lens: all candidates of a few prompts, the same ones for the same run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from builder.lens import Lens, lens, prefix_and_rest
from builder.release_rows import unplaced
from builder.report_index import data_block, encoded
from builder.report_replies import Replies

SAMPLES: Final = 300
_CANDIDATES: Final = 12
"""Replies with text at most, and of one prompt."""
_TRAITS: Final = 60
_MAX_CHARS: Final = 100_000
_MAX_SENTENCES: Final = 3_000
_PROMPT_CHARS: Final = 8_000
_MESSAGES: Final = 6
"""The most that is kept of a reply and of its prompt."""
# One prompt for every rule, verdict, role and stage that there is, then prompts of each domain in turn.
_PROMPTS: Final = f"""
with
traits as (
    select
        prompt_id,
        unnest(list_concat(rules, stages, ['verdict ' || coalesce(verdict, 'none'), 'role ' || role])) as trait
    from replies
),

telling as (
    select arg_min(prompt_id, md5(prompt_id)) as prompt_id, trait
    from traits
    group by trait
    order by trait
    limit {_TRAITS}
),

named as (select prompt_id, min(domain) as domain from replies group by prompt_id),

turns as (
    select prompt_id, row_number() over (partition by domain order by md5(prompt_id), prompt_id) as turn, domain
    from named
),

wanted as (
    select turns.*, turns.prompt_id in (select prompt_id from telling) as is_telling
    from turns
    where turn <= {SAMPLES} or turns.prompt_id in (select prompt_id from telling)
)

select prompt_id from wanted order by is_telling desc, turn, domain, prompt_id limit {SAMPLES}
"""
_REPLIES: Final = """
select
    replies.*, own.rank as own_rank,
    count(*) filter (where ranks) over (partition by prompt_id, temperature) as rivals
from replies
left join {ranks} as own on own.response_id = replies.response_id
where prompt_id in (select unnest(?::varchar[]))
order by len(stages) = 0, temperature, coalesce(own.rank, 1000000), sample_index, replies.response_id
"""
_OF_REPLIES: Final = "from {table} where response_id in (select unnest(?::varchar[]))"
_BROKEN: Final = """
select response_id, rule_name, observed, threshold
from rejections
where response_id in (select unnest(?::varchar[]))
order by response_id, rule_name
"""


@dataclass(frozen=True)
class Samples:
    """Sampled prompts and replies as the page's script reads them; `ids` are those of the replies, in their order."""

    prompts: tuple[Mapping[str, Any], ...]
    replies: tuple[Mapping[str, Any], ...]

    @property
    def ids(self) -> list[str]:
        return [reply["id"] for reply in self.replies]


def samples(replies: Replies, room: int, *, has_ranks: bool) -> Samples:
    """Prompts with all their candidates, as long as their JSON takes no more than `room` bytes; a prompt that does not
    fit is passed over. `has_ranks` says that view own_ranks holds the recipe's ranking."""
    rows = _wanted(replies, has_ranks=has_ranks)
    prompts: list[Mapping[str, Any]] = []
    kept: list[Mapping[str, Any]] = []
    for prompt, own in _read(replies, rows):
        size = len(data_block([prompt, own]).encode())
        if size <= room:
            room -= size
            kept += [{**one, "prompt": len(prompts)} for one in own]
            prompts.append(prompt)
    return Samples(tuple(prompts), tuple(kept))


def _wanted(replies: Replies, *, has_ranks: bool) -> dict[str, list[dict[str, Any]]]:
    """Rows of `replies` by prompt, up to `SAMPLES` of them, those of one prompt as they stand side by side."""
    prompts = [row["prompt_id"] for row in replies.ask(_PROMPTS)]
    ranks = "own_ranks" if has_ranks else "(select null::varchar as response_id, null::bigint as rank where false)"
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in prompts}
    for row in replies.ask(_REPLIES.format(ranks=ranks), [prompts]):
        found[row["prompt_id"]].append(row)
    left = SAMPLES
    taken = {}
    for name, own in found.items():
        if 0 < min(len(own), _CANDIDATES) <= left:
            taken[name] = own
            left -= min(len(own), _CANDIDATES)
    return taken


def _read(
    replies: Replies, rows: Mapping[str, list[dict[str, Any]]]
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each prompt with its candidates, whose texts and sentences are read in one pass each."""
    names = [row["response_id"] for own in rows.values() for row in own[:_CANDIDATES]]
    tables = ("texts", "sentence_lists")
    texts, lists = (
        {row["response_id"]: row for row in replies.ask(_OF_REPLIES.format(table=table), [names])} for table in tables
    )
    broken: dict[str, list[list[Any]]] = {}
    for row in replies.ask(_BROKEN, [names]) if replies.of_run else []:
        numbers = [_finite(row["observed"]), _finite(row["threshold"])]
        broken.setdefault(row["response_id"], []).append([row["rule_name"], *numbers])
    asked = replies.ask("from questions where prompt_id in (select unnest(?::varchar[]))", [list(rows)])
    questions = {row["prompt_id"]: row for row in asked}
    for name, own in rows.items():
        prompt = _prompt(questions.get(name, {"messages": [], "gold": None}), len(own))
        found = []
        for row in own[:_CANDIDATES]:
            key = row["response_id"]
            found.append(_reply(row, texts[key], lists.get(key), broken.get(key, []), replies.margin))
        yield prompt, found


def _prompt(row: Mapping[str, Any], candidates: int) -> dict[str, Any]:
    messages = row["messages"] or []
    shown = [
        [one["role"] or "", _head(one["content"]), max(0, len(one["content"] or "") - _PROMPT_CHARS)]
        for one in messages[-_MESSAGES:]
    ]
    return {
        "messages": shown,
        "hidden": len(messages) - len(shown),
        "gold": row["gold"] and _head(row["gold"]),
        "candidates": candidates,
    }


def _head(text: str | None) -> str:
    """A stranger's release may hold a message without content."""
    return (text or "")[:_PROMPT_CHARS]


def _reply(
    row: Mapping[str, Any],
    text: Mapping[str, Any],
    lists: Mapping[str, Any] | None,
    broken: list[list[Any]],
    margin: float,
) -> dict[str, Any]:
    """What the script shows of a reply beside its row of the index. `parts` are the reasoning and the answer as pairs
    of a sentence's number from 1 (0: not scored) and text; probabilities float32, missing where NaN."""
    made: dict[str, Any] = {
        "id": row["response_id"], "model": unplaced(text["model"]), "finish": row["finish_reason"],
        "position": row["position"], "rank": row["rank"] or row["own_rank"], "rivals": row["rivals"], "broken": broken,
    }  # fmt: skip
    if lists is None:
        return made | _plain(row, text["reasoning"], text["answer"])
    found = lens(text["reasoning"], text["answer"], lists, margin, max_chars=_MAX_CHARS, max_sentences=_MAX_SENTENCES)
    return made | {
        "parts": {
            part: [[piece.sentence.number, piece.text] for piece in found.part(part)]
            for part in ("reasoning", "answer")
        },
        "hidden": found.hidden_chars,
        **_probabilities(found),
    }


def _plain(row: Mapping[str, Any], reasoning: str | None, answer: str | None) -> dict[str, Any]:
    """A reply without scores: what the student began and what the teacher wrote, in pieces."""
    parts: dict[str, list[list[Any]]] = {"reasoning": [], "answer": []}
    room, hidden = _MAX_CHARS, 0
    for author, part, text in prefix_and_rest(reasoning, answer, row["prefix_chars"] or 0):
        parts[part].append([0, text[:room], author])
        hidden += len(text) - len(text[:room])
        room -= len(text[:room])
    return {"parts": parts, "hidden": hidden}


def _probabilities(found: Lens) -> dict[str, str]:
    def floats(name: str) -> str:
        return encoded(np.array([getattr(one, name) for one in found.sentences], dtype="<f4"))

    def tokens(name: str) -> str:
        return encoded(np.array([min(getattr(one, name), 65_535) for one in found.sentences], dtype="<u2"))

    return {
        "teacher": floats("p_teacher"), "student": floats("p_student"),
        "teacherTokens": tokens("teacher_tokens"), "studentTokens": tokens("student_tokens"),
    }  # fmt: skip


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
