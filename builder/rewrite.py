"""Replies → rewrites: a second model makes the teacher's reasoning readable, and says which reply each one rewrites.

As the cold start of DeepSeek-R1 (arXiv:2501.12948v2, B.3). Rewrites are replies of role `rewrite`: verified, judged by
the recipe's rules and selected like any other, because a rewrite may change the answer.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from builder.config import Generation, Recipe, Teacher
from builder.console import Progress
from builder.errors import TableError
from builder.identity import order_key, response_id
from builder.judge_ask import Send, distinct, task_requests
from builder.judge_prompt import Asked
from builder.requests import Request
from builder.review_rules import REVIEW_RULES, without_rules
from builder.rewrite_prompt import asked_to_rewrite, outcome_of
from builder.store import Run, columns_table
from builder.whole_replies import whole_replies
from builder.wire import Wire


@dataclass(frozen=True)
class ToRewrite:
    """The replies that `rewrite` takes: rows with response_id, prompt_id, messages, reasoning, answer.

    `whole` replies of the teacher break no rule; `without_text` of the chosen ones lack reasoning or answer, so there
    is nothing to rewrite.
    """

    originals: Sequence[Mapping[str, Any]]
    whole: int
    without_text: int


@dataclass(frozen=True)
class RewriteResult:
    """What rewriting did: of `whole` replies that break no rule `chosen` were to be rewritten, `without_text` lack
    reasoning or answer. `asked` requests, `sent` of them now; `unanswered` ones the endpoint refused, or a limit left.

    `outcomes` counts the rewrites by what they are (`schema.REWRITE_OUTCOMES`). Tokens and USD are those of `sent`.
    """

    whole: int
    chosen: int
    without_text: int
    asked: int
    sent: int
    unanswered: int
    tokens: int
    cost_usd: float | None
    outcomes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Rewriting:
    """Rewriting as the recipe asks for it: what is sent for a reply, and which stored replies answer."""

    wire: Wire

    @classmethod
    def of(cls, recipe: Recipe) -> "Rewriting":
        """Raises UsageError where the recipe has no section `rewrite`."""
        section = recipe.require_rewrite()
        generation = Generation(
            temperatures=[section.temperature],
            samples=section.samples,
            max_tokens=section.max_tokens,
            seed=recipe.generation.seed,
            reasoning_effort=section.reasoning_effort,
            extra_body=section.extra_body,
            logprobs=False,
        )
        model = Teacher(
            model=section.model, revision=section.revision, endpoints=section.endpoints, prices=section.prices
        )
        return cls(Wire(model, generation, "rewrite"))

    def asked(self, original: Mapping[str, Any]) -> Asked:
        """The task for one reply."""
        return asked_to_rewrite(original, self.wire.generation.seed)

    def requests(self, original: Mapping[str, Any]) -> Iterator[Request]:
        """One request a sample. They belong to the reply's prompt and name the reply."""
        return task_requests(self.wire, original["prompt_id"], self.asked(original), original["response_id"])


def choose_originals(
    run: Run,
    recipe: Recipe,
    *,
    recipe_dir: Path | None = None,
    allow_code: bool = False,
    progress: Progress = lambda *_: None,
) -> ToRewrite:
    """The teacher's replies that break no rule, `rewrite.per_prompt` of a prompt at most, in a seeded order.

    Rules about reviews do not count: people review rewrites. Raises UsageError without `rewrite`, TableError for a run
    without replies.
    """
    section = recipe.require_rewrite()
    number = section.per_prompt or recipe.selection.keep
    before = without_rules(recipe, REVIEW_RULES)
    whole = whole_replies(run, before, recipe_dir, progress, allow_code=allow_code)
    chosen = [
        identity
        for _, ids in whole.group_by("prompt_id", maintain_order=True).agg("response_id").iter_rows()
        for identity in sorted(ids, key=lambda one: order_key(one, recipe.generation.seed))[:number]
    ]
    wanted = pl.LazyFrame({"response_id": chosen}, schema={"response_id": pl.String})
    prompts = run.scan("prompts").select("prompt_id", "messages").unique("prompt_id", keep="last")
    texts = run.scan("responses").select("response_id", "prompt_id", "reasoning", "answer")
    rows = (
        wanted.join(texts.unique("response_id"), on="response_id", maintain_order="left")
        .join(prompts, on="prompt_id", maintain_order="left")
        .collect()
    )
    has_text = [bool(row["reasoning"]) and bool(row["answer"]) for row in rows.iter_rows(named=True)]
    return ToRewrite(rows.filter(pl.Series(has_text, dtype=pl.Boolean)).to_dicts(), whole.height, has_text.count(False))


def rewrite(run: Run, recipe: Recipe, chosen: ToRewrite, send: Send, *, limit: int | None = None) -> RewriteResult:
    """Ask for what no stored reply answers and write table `rewrites`: every answered rewrite of the chosen replies.

    `limit` asks for the first prompts only; what is answered for others stays. Raises as `send`, before the table is
    touched, and TableError where there is no reply to rewrite.
    """
    rewriting = Rewriting.of(recipe)
    if not chosen.originals:
        raise TableError(
            f"There is nothing to rewrite: {chosen.whole:,} replies of the teacher break no rule"
            + (f", and the {chosen.without_text:,} chosen ones lack reasoning or answer" if chosen.without_text else "")
            + ". Nothing was asked. Run builder generate and verify first, or drop a rule; rewrite=null builder select "
            "shows what each breaks."
        )
    prompts = list(dict.fromkeys(row["prompt_id"] for row in chosen.originals))[:limit]
    within = set(prompts)
    wanted = list(
        distinct(
            request for row in chosen.originals if row["prompt_id"] in within for request in rewriting.requests(row)
        )
    )
    tally = send("rewrites", rewriting.wire, wanted, len(wanted))
    rows = _rows(run, rewriting, chosen.originals)
    run.replace("rewrites", columns_table("rewrites", rows))
    return RewriteResult(
        whole=chosen.whole,
        chosen=len(chosen.originals),
        without_text=chosen.without_text,
        asked=len(wanted),
        sent=tally.replies,
        unanswered=len(wanted) - tally.done,
        tokens=tally.prompt_tokens + tally.completion_tokens,
        cost_usd=tally.cost_usd if recipe.require_rewrite().prices else None,
        outcomes=dict(sorted(Counter(str(row["outcome"]) for row in rows).items())),
    )


def _rows(run: Run, rewriting: Rewriting, originals: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of table `rewrites`; where two replies say the same, their one rewrite is that of the first."""
    replies = run.scan("responses").filter(pl.col("role") == "rewrite")
    stored = {
        row["response_id"]: row
        for row in replies.select("response_id", "finish_reason", "reasoning", "answer").collect().iter_rows(named=True)
    }
    found: dict[str, dict[str, Any]] = {}
    for original in originals:
        nonce = rewriting.asked(original).nonce
        for request in rewriting.requests(original):
            whole = response_id(request.key, finish_reason=None, max_tokens=None)
            cut = response_id(request.key, finish_reason="length", max_tokens=request.max_tokens)
            reply = stored.get(whole) or stored.get(cut)
            if reply is not None and reply["response_id"] not in found:
                found[reply["response_id"]] = {
                    "response_id": reply["response_id"],
                    "prompt_id": original["prompt_id"],
                    "original_id": original["response_id"],
                    "outcome": outcome_of(reply, original, nonce),
                }
    return list(found.values())
