"""Replies and their verdicts → pass@1, pass@k and maj@k with intervals over questions."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import polars as pl

from builder.errors import VerifyError
from builder.pass_at_k import answer_group, majority, pass_at_k, sizes
from builder.release_rows import deciding_verdicts
from builder.statistics import mean_interval
from builder.store import Run
from builder.verify import JUDGE

_COMPARES: Final = ("math", "choice", "exact", "set")
"""Verifiers that compare one final answer; of the others' replies no majority can be had."""
_NOT_JUDGED: Final = ("unscorable", "timeout", "error")


@dataclass(frozen=True)
class AtK:
    """pass@k and maj@k over the questions with at least `k` replies, each with its 95% interval.

    maj@k is that of the first k replies; None where a verifier compares no final answer.
    """

    k: int
    questions: int
    pass_at_k: float
    low: float
    high: float
    maj_at_k: float | None
    maj_low: float | None
    maj_high: float | None


@dataclass(frozen=True)
class Counts:
    """What the verdicts on some replies say. `unscorable` ones (and timeouts, errors) count as not correct.

    `pass_at_1` is the mean over questions of the share of correct replies; `low` and `high` its 95% interval. `cut`
    replies ended at their token limit; `mean_tokens` are completion tokens by the endpoint's count.
    """

    questions: int
    replies: int
    correct: int
    unscorable: int
    pass_at_1: float
    low: float
    high: float
    mean_tokens: float
    cut: int
    at_k: tuple[AtK, ...]


def judged(run: Run, role: str, *, samples: int | None = None) -> pl.DataFrame:
    """One row a reply of `role` to a question that can be judged, with the verdict that decides it; no texts.

    Questions can be judged that have a gold and a verifier that reads it, no judge, or a verdict on some reply.
    Columns: prompt_id, model, temperature, sample_index, verdict, extracted, compares, completion_tokens,
    finish_reason; in order of question and sample. A reply that was cut and asked again at a larger limit is left out.
    Raises VerifyError where a reply to such a question has no verdict: a score without it would be of other replies.
    """
    program = pl.col("verifier").is_not_null() & (pl.col("verifier") != JUDGE)
    with_gold = pl.col("gold").str.strip_chars().ne("").fill_null(value=False) & program
    prompts = run.scan("prompts").select(
        "prompt_id", readable=with_gold, compares=pl.col("verifier").is_in(_COMPARES).fill_null(value=False)
    )
    sample = ["prompt_id", "model", "model_revision", "temperature", "seed", "sample_index"]
    replies = (
        run.scan("responses")
        .filter(pl.col("role") == role, pl.lit(value=True) if samples is None else pl.col("sample_index") < samples)
        .select("response_id", *sample, "max_tokens", "completion_tokens", "finish_reason")
        .unique("response_id", keep="first")
    )
    asked_again = (
        pl.col("seed").is_not_null()
        & pl.col("max_tokens").is_not_null()
        & (pl.col("finish_reason") == "length").fill_null(value=False)
        & (pl.col("max_tokens") < pl.col("max_tokens").max().over(sample))
    )
    rows = (
        replies.filter(~asked_again.fill_null(value=False))
        .join(prompts, on="prompt_id")
        .join(deciding_verdicts(run), on="response_id", how="left")
        .filter(pl.col("readable") | pl.col("verdict").is_not_null().any().over("prompt_id"))
        .sort("prompt_id", "model", "temperature", "sample_index", "response_id")
        .collect()
    )
    if missing := rows["verdict"].null_count():
        raise VerifyError(
            f"{missing:,} of {rows.height:,} replies to questions with golds have no verdict. A score without them "
            "would be of other replies than it says. Run builder verify; where programs are judged, it needs a sandbox."
        )
    return rows.drop("response_id", "model_revision", "seed", "max_tokens", "readable")


def counted(rows: pl.DataFrame) -> Counts:
    """Counts of rows of `judged`, which must be there; a question is one `prompt_id`."""
    is_correct = pl.col("verdict") == "correct"
    questions = [
        _Question(tuple(verdict == "correct" for verdict in verdicts), tuple(answers))
        for verdicts, answers in rows.group_by("prompt_id", maintain_order=True)
        .agg("verdict", "extracted")
        .select("verdict", "extracted")
        .iter_rows()
    ]
    lengths = sorted(len(one.correct) for one in questions)
    shares = [sum(one.correct) / len(one.correct) for one in questions]
    low, high = mean_interval(shares)
    mean = rows["completion_tokens"].mean()
    votes = bool(rows["compares"].all())
    return Counts(
        questions=len(questions),
        replies=rows.height,
        correct=rows.filter(is_correct).height,
        unscorable=rows.filter(pl.col("verdict").is_in(_NOT_JUDGED)).height,
        pass_at_1=sum(shares) / len(shares),
        low=low,
        high=high,
        mean_tokens=float(mean) if isinstance(mean, int | float) else 0.0,
        cut=rows.filter(pl.col("finish_reason") == "length").height,
        # a few questions with fewer replies than the others lower no k, and a few with more raise none
        at_k=tuple(_at(questions, k, votes=votes) for k in sizes(lengths[len(lengths) // 2])),
    )


def shares(rows: pl.DataFrame) -> Mapping[str, float]:
    """Share of correct replies of each question, by prompt_id."""
    correct = rows.group_by("prompt_id").agg((pl.col("verdict") == "correct").mean().alias("share"))
    return dict(correct.iter_rows())


@dataclass(frozen=True, slots=True)
class _Question:
    """Replies to one question in order of samples: whether each is correct, and the answer that was compared."""

    correct: tuple[bool, ...]
    answers: tuple[str | None, ...]

    def majority(self, k: int) -> float:
        pairs = zip(self.answers[:k], self.correct[:k], strict=True)
        return majority([_group(answer, is_correct) for answer, is_correct in pairs])


@lru_cache(maxsize=100_000)
def _group(answer: str | None, is_correct: bool) -> str | None:
    return answer_group(answer, is_correct=is_correct)


def _at(questions: list[_Question], k: int, *, votes: bool) -> AtK:
    enough = [one for one in questions if len(one.correct) >= k]
    passed = [pass_at_k(len(one.correct), sum(one.correct), k) for one in enough]
    voted = [one.majority(k) for one in enough] if votes else []
    low, high = mean_interval(passed)
    maj_low, maj_high = mean_interval(voted) if votes else (None, None)
    return AtK(
        k=k,
        questions=len(enough),
        pass_at_k=sum(passed) / len(passed),
        low=low,
        high=high,
        maj_at_k=sum(voted) / len(voted) if votes else None,
        maj_low=maj_low,
        maj_high=maj_high,
    )
