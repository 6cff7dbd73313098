"""What a judge sees of a reply, and on which prompts it has something to compare."""

from collections.abc import Mapping
from typing import Any, Final

import polars as pl

from builder.answers import final_part, last_boxed
from builder.judge_prompt import question_text
from builder.store import Run
from builder.verifiers import default_verifier
from builder.verify import JUDGE

LONGEST_CANDIDATE: Final = 20_000
"""Characters of a final part or a gold, about 5,000 tokens: a longer one is `unscorable` and costs no request."""
_COMPARES: Final = ("math", "choice", "exact", "set")
"""Verifiers that compare a final answer with a gold, as a judge does. What others read as gold is no answer."""


def final_answer(answer: str | None, *, cut: bool) -> str:
    """The part of a reply that a judge sees: never its reasoning; of a cut reply a complete box, as verifiers have it.

    Empty where the reply gives no answer.
    """
    text = final_part(answer or "")
    return (last_boxed(text) or "") if cut else text


def parts(prompt: Mapping[str, Any], text: str) -> dict[str, str]:
    """Question, reference and answer as a judge's task names them; `prompt` has messages and gold."""
    return {"QUESTION": question_text(prompt["messages"]), "REFERENCE": prompt["gold"], "ANSWER": text}


def is_askable(prompt: Mapping[str, Any], text: str) -> bool:
    """Whether there is an answer at all, and neither it nor the gold is too long to be asked about."""
    return 0 < len(text) <= LONGEST_CANDIDATE and len(prompt["gold"]) <= LONGEST_CANDIDATE


def judged_prompts(run: Run) -> pl.DataFrame:
    """Prompts whose gold is an answer: those that name the judge, and those of verifiers that compare answers or none.

    Columns prompt_id, messages, domain, gold, gold_type, for_judge (whether they name it), and checker: the verifier
    that can compare two answers by this gold, null where none can.
    """
    columns = ["prompt_id", "messages", "domain", "gold", "gold_type", "verifier"]
    prompts = run.read("prompts", columns).unique("prompt_id", keep="last", maintain_order=True)
    defaults = pl.Series([default_verifier(gold_type) for gold_type in prompts["gold_type"]], dtype=pl.String)
    for_judge = pl.col("verifier").eq_missing(pl.lit(JUDGE))
    named = prompts.with_columns(
        for_judge=for_judge, checker=pl.when(for_judge).then(defaults).otherwise(pl.coalesce("verifier", defaults))
    )
    compares = pl.col("checker").is_in(_COMPARES)
    has_gold = (pl.col("gold").str.strip_chars() != "").fill_null(value=False)
    return named.filter(has_gold & (pl.col("for_judge") | pl.col("checker").is_null() | compares)).with_columns(
        checker=pl.when(compares).then("checker")
    )
