"""Rollouts of a checkpoint on selected questions: how long they may get, which are kept, where they are cut.

Mixed-policy distillation, arXiv:2601.09088 p.10-13; spec/dasd.md section 6 says what the report leaves open.
"""

import hashlib
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from builder.config import MixedPolicy, Recipe, Student
from builder.identity import Message, order_key, request_key, request_seed
from builder.prefix import Prefix
from builder.requests import Request, sampling
from builder.scripts import is_cjk
from builder.stages import stages_of
from builder.store import Run
from builder.student import CannotRender, StudentTokenizer, student_messages
from builder.text import THINK_OPEN, completion_text

_JOINERS: Final = frozenset("\u200c\u200d\ufe0e\ufe0f")


@dataclass(frozen=True)
class Question:
    """A selected question: the prompt as the student sees it, the reply that sets its length, and the cap in tokens."""

    prompt_id: str
    reference_id: str
    messages: list[Message]
    prompt_tokens: int
    opens_thinking: bool
    length_cap: int


def pick(run: Run, recipe: Recipe, policy: MixedPolicy, student: StudentTokenizer) -> tuple[list[Question], int]:
    """Questions of the selection in a seeded order, at most `policy.prompts`; and how many leave no room for a reply.

    Where a question has several selected replies, that of the latest stage counts: the student trained on it last.
    """
    places = {name: place for place, name in enumerate(stages_of(run, recipe)) if name != policy.stage}
    seed = recipe.generation.seed
    rows = (
        run.scan("selection")
        .filter((pl.col("kind") == "sft") & pl.col("stage").is_in(list(places)))
        .with_columns(place=pl.col("stage").replace_strict(places, return_dtype=pl.Int32))
        .join(run.scan("responses"), left_on="grain_id", right_on="response_id")
        .sort(pl.col("place").neg(), "position")
        .unique("prompt_id", keep="first", maintain_order=True)
        .join(run.scan("prompts").select("prompt_id", "messages"), on="prompt_id")
        .select("prompt_id", "grain_id", "messages", "reasoning", "answer")
        .collect()
    )
    chosen = sorted(rows.iter_rows(named=True), key=lambda row: order_key(row["prompt_id"], seed))[: policy.prompts]
    found = [_question(row, policy.length_cap, student) for row in chosen]
    questions = [question for question in found if question is not None]
    return questions, len(found) - len(questions)


def _question(row: dict[str, Any], length_cap: float, student: StudentTokenizer) -> Question | None:
    """None where prompt and context leave no room for a reply, or the template cannot render it."""
    try:
        text, prompt_ids = student.prompt(row["messages"])
        rendered = student.render(row["messages"], row["reasoning"], row["answer"])
    except CannotRender:
        return None
    cap = math.ceil(length_cap * (len(rendered.completion_ids) + 1))
    if student.context is not None:
        cap = min(cap, student.context - len(prompt_ids))
    if cap < 1:
        return None
    opens = text.rstrip().endswith(THINK_OPEN)
    return Question(row["prompt_id"], row["grain_id"], row["messages"], len(prompt_ids), opens, cap)


def rollout_request(question: Question, recipe: Recipe, policy: MixedPolicy, revision: str) -> Request:
    """The request for one rollout of the checkpoint with weights `revision`."""
    student = recipe.require_student()
    generation = recipe.generation.model_copy(update=sampling_of_rollouts())
    seed = request_seed(generation.seed, question.prompt_id, policy.temperature, 0)
    messages = student_messages(student, question.messages)
    key = request_key(
        model=student_label(student),
        revision=revision,
        messages=messages,
        prefix=None,
        sampling=sampling(generation, policy.temperature),
        seed=seed,
        sample_index=0,
    )
    return Request(key, question.prompt_id, messages, policy.temperature, 0, seed, question.length_cap)


def sampling_of_rollouts() -> dict[str, Any]:
    """What the teacher's settings do not decide for the student: it is sampled as it will be used, without cuts."""
    return {"top_p": 1.0, "extra_body": {}, "reasoning_effort": None, "system_prompt": None, "logprobs": False}


def student_label(student: Student) -> str:
    """The student's name in tables; which of its checkpoints wrote a reply is in `model_revision`."""
    return student.model.rstrip("/").rpartition("/")[2] if student.model.startswith(("/", "~", ".")) else student.model


@dataclass(frozen=True)
class Rollout:
    """A rollout as the student wrote it: its text, where its tokens end (characters), and whether it hit the cap."""

    text: str
    token_ends: list[int]
    hit_cap: bool


def read_rollout(row: Mapping[str, Any], question: Question, student: StudentTokenizer) -> Rollout:
    """The completion as far as it was written, cut at today's cap where a longer one is stored.

    A block that the template opened is thinking although the reply shows no tag of it.
    """
    reasoning, answer = row["reasoning"], row["answer"]
    if reasoning is None and question.opens_thinking:
        reasoning, answer = answer, None
    text = completion_text(reasoning, answer) if answer or not reasoning else Prefix(reasoning, None).text
    ends = student.token_ends(text)
    long = len(ends) > question.length_cap
    if long:
        ends = ends[: question.length_cap]
        text = text[: ends[-1]]
    return Rollout(text, ends, long or row["finish_reason"] == "length" or len(ends) >= question.length_cap)


def is_kept(rollout: Rollout, verdict: str | None, keep: str) -> bool:
    """Whether `mixed_policy.keep` wants a rollout; `verdict` is that of its prompt's verifier.

    Wrong are those that ended by themselves with a wrong answer: one cut at the cap gave none.
    """
    wrong = verdict == "wrong" and not rollout.hit_cap
    return {"cap": rollout.hit_cap, "wrong": wrong, "cap_or_wrong": rollout.hit_cap or wrong, "all": True}[keep]


def cut(rollout: Rollout, response_id: str, share: tuple[float, float], seed: int) -> int | None:
    """Where the teacher takes over: characters of the rollout to keep, None where no edge lies in the range.

    A token is drawn uniformly from the range `share` of the rollout's tokens; the cut is the last edge up to it, else
    the first after it. An edge ends both a token and a word, outside tags: `is_edge`.
    """
    total = len(rollout.token_ends)
    first, last = max(1, math.ceil(share[0] * total)), min(total - 1, math.floor(share[1] * total))
    if first > last:
        return None
    digest = hashlib.sha256(f"cut:{seed}:{response_id}".encode()).digest()
    drawn: int = first + (int.from_bytes(digest[:8], "big") * (last - first + 1) >> 64)
    prefix = Prefix.of(rollout.text)
    solid = _solid_span(prefix)
    for token in (*range(drawn, first - 1, -1), *range(drawn + 1, last + 1)):
        end: int = rollout.token_ends[token - 1]
        if end < rollout.token_ends[token] and is_edge(rollout.text, end) and any(a < end <= b for a, b in solid):
            return end
    return None


def is_edge(text: str, end: int) -> bool:
    """Whether a word ends at character `end`: white space follows, or a script without spaces stands on either side."""
    if not 0 < end < len(text) or text[end - 1].isspace():
        return False
    after = text[end]
    if after.isspace():
        return True
    if unicodedata.combining(after) or after in _JOINERS or text[end - 1] in _JOINERS:
        return False
    return is_cjk(text[end - 1]) or is_cjk(after)


def _solid_span(prefix: Prefix) -> Sequence[tuple[int, int]]:
    """Characters of thinking and of answer: cuts fall there, never in a tag or beside it."""
    if prefix.reasoning is None:
        return ((0, len(prefix.text)),)
    thinking = Prefix("", None).text
    end = len(thinking) + len(prefix.reasoning)
    return ((len(thinking), end), (len(prefix.text) - len(prefix.answer or ""), len(prefix.text)))
