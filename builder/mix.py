"""Mixed-policy rows: roll out a checkpoint, cut, let the teacher finish (arXiv:2601.09088 p.10-13).

The step leaves replies of roles `student` and `mixed` and table `rollouts`, which says what became of each rollout;
the selection then judges the mixed replies by the recipe's rules and makes the stage.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from builder.client import Client
from builder.config import MixedPolicy, Recipe, Student, Teacher
from builder.continuation import Continuing, prompt_tokens_of
from builder.errors import MixError, UsageError
from builder.identity import request_key, request_seed
from builder.models import model_sha256, weights_sha256
from builder.prefix import Prefix
from builder.release_rows import deciding_verdicts
from builder.requests import Request, messages_of, sampling
from builder.rollout import (
    Question,
    Rollout,
    cut,
    is_kept,
    pick,
    read_rollout,
    rollout_request,
    sampling_of_rollouts,
    student_label,
)
from builder.section import Endpoint
from builder.store import Run, columns_table
from builder.student import StudentTokenizer, student_messages
from builder.wire import Wire


@dataclass(frozen=True)
class Checkpoint:
    """The student as far as it is trained: its folder, what identifies it, where it comes from, its tokenizer."""

    folder: Path
    revision: str
    weights_sha256: str
    origin: dict[str, str | None]
    tokenizer: StudentTokenizer


@dataclass
class MixResult:
    """What a mix did, in rollouts. `outcomes` as in table `rollouts`; `no_room` questions leave no token for a reply.

    `empty` rollouts brought no text; `continued` have a teacher's ending, whose quality the selection judges.
    """

    questions: int
    no_room: int
    rollouts: int = 0
    empty: int = 0
    hit_cap: int = 0
    continued: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    adapter: str = ""

    def count(self, run: Run) -> None:
        """Take the numbers from table `rollouts`."""
        rows = run.read("rollouts", ["outcome", "hit_cap", "continuation_id"])
        self.rollouts = rows.height
        self.empty = self.questions - rows.height
        self.hit_cap = int(rows["hit_cap"].sum())
        self.continued = rows.height - rows["continuation_id"].null_count()
        self.outcomes = dict(sorted(Counter(rows["outcome"].to_list()).items()))


def open_checkpoint(recipe: Recipe, folder: Path) -> Checkpoint:
    """The checkpoint in a folder. Raises UsageError where it is none, MixError where it is another student's."""
    student = recipe.require_student()
    if not folder.is_dir():
        raise UsageError(
            f"--student {folder} is no folder. A rollout is known by the hash of its weights: give the "
            "checkpoint's folder (a Hub model: hf download ORG/NAME --local-dir DIR), and --endpoint where it runs."
        )
    revision, weights = model_sha256(folder), weights_sha256(folder)
    tokenizer = StudentTokenizer(Student(model=str(folder), system_prompt=student.system_prompt))
    base = StudentTokenizer(student)
    if tokenizer.tokenizer.get_vocab() != base.tokenizer.get_vocab():
        raise MixError(
            f"The checkpoint {folder} has another vocabulary ({len(tokenizer.tokenizer):,} tokens) than the recipe's "
            f"student {student.model} ({len(base.tokenizer):,}). Lengths are counted and rows trained in the student's "
            "tokens: give a checkpoint that was trained from it, or make a recipe for the other student."
        )
    return Checkpoint(folder, revision, weights, _origin(folder), tokenizer)


def _origin(folder: Path) -> dict[str, str | None]:
    """What the trainer wrote beside the weights: base, dataset (build_id) and stage; nulls for another's checkpoint."""
    path = folder / "training.json"
    if not path.is_file():
        return {"base": None, "dataset": None, "stage": None}
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        hub, weights = record.get("base_revision"), record.get("base_weights_sha256")
        base = f"{record['base_model']}@{hub}" if hub else weights
        return {"base": base, "dataset": record["dataset"]["build_id"], "stage": record["stage"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MixError(
            f"{path} cannot be read ({error!r}); delete it if the checkpoint is not from trainer run."
        ) from None


@dataclass(frozen=True)
class Mix:
    """One mix: who rolls out, who goes on, on which questions."""

    run: Run
    recipe: Recipe
    policy: MixedPolicy
    checkpoint: Checkpoint
    teacher: Continuing
    questions: list[Question]

    def student_wire(self, url: str, served_as: str) -> Wire:
        """The checkpoint at its server."""
        asked = Teacher(
            model=student_label(self.recipe.require_student()),
            revision=self.checkpoint.revision,
            endpoints=[Endpoint(url=url)],
        )
        generation = self.recipe.generation.model_copy(update=sampling_of_rollouts())
        return Wire(asked, generation, "student", served_as)

    def rollout_requests(self) -> list[Request]:
        """One rollout a question."""
        revision = self.checkpoint.revision
        return [rollout_request(question, self.recipe, self.policy, revision) for question in self.questions]

    def rows(self) -> list[dict[str, Any]]:
        """Rows of table `rollouts`, before any continuation. Raises MixError where no rollout is kept."""
        stored = self._replies("student", pl.col("model_revision") == self.checkpoint.revision)
        judged = deciding_verdicts(self.run).select("response_id", "verdict").collect()
        verdicts: dict[str, str] = dict(judged.iter_rows())
        rows = []
        for question, request in zip(self.questions, self.rollout_requests(), strict=True):
            reply = stored.get((question.prompt_id, request.seed))
            if reply is None:
                continue
            rollout = read_rollout(reply, question, self.checkpoint.tokenizer)
            rows.append(self._row(question, reply["response_id"], rollout, verdicts.get(reply["response_id"])))
        if not any(row["outcome"] == "cut" for row in rows):
            raise MixError(self._nothing_kept(rows))
        return rows

    def _row(self, question: Question, response_id: str, rollout: Rollout, verdict: str | None) -> dict[str, Any]:
        outcome, chars = "not_kept", None
        if is_kept(rollout, verdict, self.policy.keep):
            chars = cut(rollout, response_id, self.policy.cut, self.recipe.generation.seed)
            outcome = "no_edge" if chars is None else "cut"
        if chars is not None and not Prefix.of(rollout.text[:chars]).is_thinking and not self.teacher.answers:
            outcome, chars = "teacher_cannot_continue", None
        total = len(rollout.token_ends)
        return {
            "response_id": response_id,
            "prompt_id": question.prompt_id,
            "reference_id": question.reference_id,
            "student_revision": self.checkpoint.revision,
            "weights_sha256": self.checkpoint.weights_sha256,
            **self.checkpoint.origin,
            "length_cap": question.length_cap,
            "student_tokens": total,
            "hit_cap": rollout.hit_cap,
            "outcome": outcome,
            "cut_chars": chars,
            "cut_share": None if chars is None else sum(end <= chars for end in rollout.token_ends) / total,
            "continuation_id": None,
            "prefix": None if chars is None else rollout.text[:chars],
        }

    def _nothing_kept(self, rows: Sequence[dict[str, Any]]) -> str:
        hit = sum(row["hit_cap"] for row in rows)
        outcomes = ", ".join(f"{number} {name}" for name, number in Counter(row["outcome"] for row in rows).items())
        found = f"{len(rows)} rollouts, {hit} of them hit their cap ({outcomes or 'none brought text'})"
        return (
            f"No rollout can be continued: {found}. The teacher was asked nothing, and table rollouts stays as it was. "
            f"mixed_policy.keep is {self.policy.keep!r}; cap_or_wrong also takes wrong ones (where golds exist), all "
            "takes every rollout; a smaller mixed_policy.length_cap is hit more often."
        )

    def continuation_requests(self, rows: Sequence[dict[str, Any]]) -> list[Request]:
        """What the teacher is asked: one continuation for each rollout that was cut."""
        generation, teacher = self.teacher.wire.generation, self.recipe.require_teacher()
        messages = {question.prompt_id: messages_of(generation, question.messages) for question in self.questions}
        found = []
        for row in rows:
            if row["prefix"] is None:
                continue
            prompt = row["prompt_id"]
            seed = request_seed(generation.seed, prompt, self.policy.temperature, 0)
            key = request_key(
                model=teacher.model,
                revision=teacher.revision,
                messages=messages[prompt],
                prefix=row["prefix"],
                sampling=sampling(generation, self.policy.temperature),
                seed=seed,
                sample_index=0,
            )
            found.append(
                Request(
                    key=key,
                    prompt_id=prompt,
                    messages=messages[prompt],
                    temperature=self.policy.temperature,
                    sample_index=0,
                    seed=seed,
                    max_tokens=generation.max_tokens,
                    prefix=row["prefix"],
                    prefix_response_id=row["response_id"],
                )
            )
        return found

    def finish(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write table `rollouts`, each row with the reply that goes on from it."""
        teacher = self.recipe.require_teacher()
        same = (pl.col("model") == teacher.model) & pl.col("model_revision").eq_missing(pl.lit(teacher.revision))
        replies = self._replies("mixed", same, by=("prefix_response_id", "prefix_chars"))
        finished = []
        for row in rows:
            reply = replies.get((row["response_id"], row["cut_chars"]))
            plain = {name: value for name, value in row.items() if name != "prefix"}
            finished.append(plain | {"continuation_id": reply and reply["response_id"]})
        self.run.replace("rollouts", columns_table("rollouts", finished))

    def _replies(
        self, role: str, where: pl.Expr, by: tuple[str, str] = ("prompt_id", "seed")
    ) -> dict[tuple[Any, Any], dict[str, Any]]:
        """Replies of a role at the mix's temperature, by two columns; of several the whole one, else the longest."""
        rows = (
            self.run.scan("responses")
            .filter((pl.col("role") == role) & (pl.col("temperature") == self.policy.temperature) & where)
            .sort((pl.col("finish_reason") != "length").fill_null(value=True), "max_tokens", "response_id")
            .select("response_id", "finish_reason", "reasoning", "answer", *{*by, "prompt_id"})
            .collect()
        )
        return {(row[by[0]], row[by[1]]): row for row in rows.iter_rows(named=True)}


def prepare(
    run: Run, recipe: Recipe, policy: MixedPolicy, checkpoint: Checkpoint, teacher: Continuing
) -> tuple[Mix, MixResult]:
    """The questions to roll out. Raises MixError where the selection has none."""
    questions, no_room = pick(run, recipe, policy, checkpoint.tokenizer)
    if not questions:
        raise MixError(
            "The selection has no reply to roll out on"
            + (f": {no_room} questions leave no room in the student's context" if no_room else "")
            + ". Run builder select, and look at its funnel."
        )
    found = MixResult(len(questions), no_room, adapter=teacher.adapter)
    return Mix(run, recipe, policy, checkpoint, teacher, questions), found


@contextmanager
def served(checkpoint: Checkpoint, endpoint: str | None, question: Question) -> Iterator[tuple[str, str]]:
    """Address and name of the checkpoint: at the given endpoint, else a server on this machine for the time of the mix.

    Raises MixError where the endpoint serves something else: other names, or prompts of other lengths.
    """
    if endpoint is None:
        from builder.local_server import running_server

        with running_server(checkpoint.folder, model_name=checkpoint.folder.name) as url:
            yield url, checkpoint.folder.name
        return
    yield endpoint, asyncio.run(_served_as(Endpoint(url=endpoint), checkpoint, question))


async def _served_as(endpoint: Endpoint, checkpoint: Checkpoint, question: Question) -> str:
    """The endpoint's name for the checkpoint: its folder's name, else the only one it lists."""
    async with Client([endpoint]) as client:
        names = await client.models()
        wanted = checkpoint.folder.name
        if wanted not in names and len(names) != 1:
            raise MixError(
                f"{endpoint.url} serves {', '.join(names) or 'nothing it lists'}; which one is {checkpoint.folder}? "
                f"Serve it under the folder's name: builder serve {checkpoint.folder} --model-name {wanted}."
            )
        name = wanted if wanted in names else names[0]
        messages = student_messages(checkpoint.tokenizer.student, question.messages)
        body = await client.post("/chat/completions", {"model": name, "messages": messages, "max_tokens": 1})
        counted = prompt_tokens_of(body)
    if counted != question.prompt_tokens:
        raise MixError(
            f"{endpoint.url} renders the first question in {counted} tokens, the tokenizer and template in "
            f"{checkpoint.folder} in {question.prompt_tokens}. It serves another model or template, and its mistakes "
            "would not be this student's. Serve that folder, with its own chat template."
        )
    return name
