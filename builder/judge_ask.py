"""A judge's votes as requests of the journalled client, and its stored replies as votes.

A vote is found again by what was asked: its request's key, made anew, names the reply. So nothing says which reply
answers which question but the question itself, and two answers that read the same are asked about once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from builder.config import Generation, Recipe, Teacher
from builder.identity import request_key, request_seed, response_id
from builder.judge_prompt import ANSWER, NULL, Asked, Task, Vote, asked, counted, parse_vote
from builder.requests import Request, sampling
from builder.store import Run
from builder.tally import Tally
from builder.wire import Wire

MISSING: Final = "missing"
"""The vote that an endpoint refused to give: a rerun asks for it again."""
Said = Mapping[str, Vote | None]
"""A judge's replies by response id, as votes; None for those that hold none."""
Send = Callable[[str, Wire, Iterable[Request], int], Tally]
"""Sends so many requests, those that no stored reply answers; raises where a rerun would bring more."""


@dataclass(frozen=True)
class Judging:
    """A task as the recipe's judge does it: what is sent, and which of the stored votes answer a question."""

    task: Task
    wire: Wire

    @classmethod
    def of(cls, recipe: Recipe, task: Task = ANSWER) -> "Judging":
        """Raises UsageError where the recipe has no judge."""
        judge = recipe.require_judge()
        formats = {"response_format": task.response_format} if judge.response_format == "json_schema" else {}
        generation = Generation(
            temperatures=[judge.temperature],
            samples=judge.votes,
            max_tokens=judge.max_tokens,
            seed=recipe.generation.seed,
            reasoning_effort=judge.reasoning_effort,
            extra_body={**judge.extra_body, **formats},
            logprobs=False,
        )
        model = Teacher(model=judge.model, revision=judge.revision, endpoints=judge.endpoints, prices=judge.prices)
        return cls(task, Wire(model, generation, "judge"))

    @property
    def seed(self) -> int:
        return self.wire.generation.seed

    def asked(self, parts: Mapping[str, str]) -> Asked:
        """The task with these parts, by name."""
        return asked(self.task, parts, self.seed)

    def requests(self, prompt_id: str, question: Asked) -> Iterator[Request]:
        """One request a vote. They belong to the prompt of what is judged, so that a shard holds both."""
        return task_requests(self.wire, prompt_id, question)

    def votes(self, question: Asked, said: Said) -> list[str]:
        """The verdict of each vote; `null` where it cannot be read or was cut, `missing` where it never came."""
        return [self._vote(request, question.nonce, said) for request in self.requests("", question)]

    def _vote(self, request: Request, nonce: str, said: Said) -> str:
        whole, cut = _answers(request)
        if whole in said:
            return counted(said[whole], self.task, nonce)
        return NULL if cut in said else MISSING


def is_answered(request: Request, said: Said) -> bool:
    """Whether a stored reply answers the request, whole or cut."""
    return any(reply in said for reply in _answers(request))


def _answers(request: Request) -> tuple[str, str]:
    """Response ids that a reply to the request may have: that of a whole one, and of one cut at its limit."""
    whole = response_id(request.key, finish_reason=None, max_tokens=None)
    return whole, response_id(request.key, finish_reason="length", max_tokens=request.max_tokens)


def task_requests(wire: Wire, prompt_id: str, task: Asked, about: str | None = None) -> Iterator[Request]:
    """One request a sample of a task with a nonce, which stands for the prompt in its seed; `about` names a reply."""
    model, generation = wire.asked, wire.generation
    (temperature,) = generation.temperatures
    for sample in range(generation.samples):
        seed = request_seed(generation.seed, task.nonce, temperature, sample)
        key = request_key(
            model=model.model,
            revision=model.revision,
            messages=task.messages,
            prefix=None,
            sampling=sampling(generation, temperature),
            seed=seed,
            sample_index=sample,
        )
        yield Request(
            key=key,
            prompt_id=prompt_id,
            messages=task.messages,
            temperature=temperature,
            sample_index=sample,
            seed=seed,
            max_tokens=generation.max_tokens,
            prefix_response_id=about,
        )


def distinct(requests: Iterable[Request]) -> Iterator[Request]:
    """Each request once: the same final answer to a question comes many times."""
    seen: set[bytes] = set()
    for request in requests:
        key = bytes.fromhex(request.key)
        if key not in seen:
            seen.add(key)
            yield request


def said_by(run: Run) -> Said:
    """Every stored reply of a judge by its response id."""
    replies = run.scan("responses").filter(pl.col("role") == "judge").select("response_id", "answer").collect()
    return {identity: parse_vote(answer) for identity, answer in replies.iter_rows()}


def majority(votes: Sequence[str]) -> str | None:
    """The verdict of more than half of all votes, those without one included; None where there is none."""
    found = {vote for vote in votes if vote not in (NULL, MISSING) and 2 * votes.count(vote) > len(votes)}
    return found.pop() if found else None
