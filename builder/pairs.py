"""Surviving replies → preference pairs: which replies of a prompt a judge compares, and what its votes say of them.

Every judged pair is kept with its votes, ties included: it is paid for. sql/mix/preference_pairs.sql decides what a
reward stage takes of them, without a request.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Final

import polars as pl

from builder.config import Recipe
from builder.console import Progress
from builder.errors import TableError, VerifyError
from builder.identity import canonical_json, order_key, sha256_hex
from builder.judge_answer import is_askable, judged_prompts
from builder.judge_ask import MISSING, Judging, Said, Send, distinct, said_by
from builder.judge_calibration import PairCalibration
from builder.judge_known import answers_of
from builder.judge_pairs import Pair, PairVerdict, PositionBias, pair_requests, position_bias, read_pair
from builder.judge_prompt import PAIR, question_text
from builder.release_rows import unplaced
from builder.store import Run, columns_table
from builder.whole_replies import whole_replies

_SWAPPED: Final = {"one": "rejected", "two": "chosen"}
_STRAIGHT: Final = {"one": "chosen", "two": "rejected"}


@dataclass(frozen=True)
class Comparison:
    """Two replies to one prompt, and what a judge is asked about them."""

    one_id: str
    two_id: str
    pair: Pair


@dataclass(frozen=True)
class ToJudge:
    """What `judge_pairs` takes: pairs that this judge has not judged, and its rows of table `pairs` that stay.

    `prompts` have a reply that breaks no rule; `without_pair` of them have no two replies that can be compared.
    """

    pairs: tuple[Comparison, ...]
    judged: pl.DataFrame
    prompts: int
    without_pair: int


@dataclass(frozen=True)
class PairsResult:
    """What judging did, in pairs: `judged` now, `kept` from before, `unanswered` lack a vote and are asked again.

    `gaps` counts all pairs of the table by gap, in votes; `bias` is that of the pairs judged now. Of `prompts` with a
    reply that breaks no rule, `without_pair` have no two that can be compared.
    """

    prompts: int
    without_pair: int
    judged: int = 0
    kept: int = 0
    unanswered: int = 0
    gaps: dict[int, int] = field(default_factory=dict)
    bias: PositionBias = field(default_factory=lambda: position_bias([]))


def choose_pairs(
    run: Run,
    recipe: Recipe,
    *,
    recipe_dir: Path | None = None,
    limit: int | None = None,
    allow_code: bool = False,
    progress: Progress = lambda *_: None,
) -> ToJudge:
    """Pairs of the teacher's replies that break no rule: `preference.pairs_per_prompt` a prompt, chosen by seed.

    Those that this judge has judged count; so more replies or pairs ask for what is missing only. Replies are compared
    that have an answer, no longer than `judge_answer.LONGEST_CANDIDATE`, and another one than the other's. `limit`
    takes the first prompts only. Raises UsageError without `preference` or `judge`, TableError for a run without
    replies.
    """
    preference = recipe.require_preference()
    version = pairs_version(recipe)
    replies = whole_replies(run, recipe, recipe_dir, progress, allow_code=allow_code)
    prompts = run.read("prompts", ["prompt_id", "messages"]).unique("prompt_id", keep="last", maintain_order=True)
    golds = judged_prompts(run).select("prompt_id", "gold")  # what verifiers read as gold is an answer there
    rows = (
        prompts.join(replies.group_by("prompt_id").agg("response_id"), on="prompt_id", maintain_order="left")
        .join(golds, on="prompt_id", how="left", maintain_order="left")
        .head(limit or prompts.height)
    )
    texts = answers_of(run, [one for ids in rows["response_id"] for one in ids])
    judged = run.read("pairs").filter(pl.col("judge_version") == version)
    done: dict[str, set[frozenset[str]]] = {}
    for prompt_id, *ids in judged.select("prompt_id", "chosen_id", "rejected_id").iter_rows():
        if texts.keys() >= set(ids):
            done.setdefault(prompt_id, set()).add(frozenset(ids))
    pairs: list[Comparison] = []
    without = 0
    for row in rows.iter_rows(named=True):
        before = done.get(row["prompt_id"], set())
        found = _compared(row, texts, before, preference.pairs_per_prompt, recipe.generation.seed)
        without += not found and not before
        pairs += found
    return ToJudge(tuple(pairs), judged, rows.height, without)


def judge_pairs(run: Run, recipe: Recipe, chosen: ToJudge, send: Send) -> PairsResult:
    """Ask about the chosen pairs and write table `pairs`: this judge's rows of before, and one for each new pair.

    A pair is written once all its votes are there; until then they are safe as replies. Rows of another judge go;
    its votes are kept as replies, so asking it again costs nothing. Raises as `send`, and TableError where there is
    no pair at all.
    """
    judging = Judging.of(recipe, PAIR)
    wanted = list(distinct(chain.from_iterable(pair_requests(judging, one.pair) for one in chosen.pairs)))
    if wanted:
        send("preference votes", judging.wire, wanted, len(wanted))
    said = said_by(run)
    answered = [one for one in chosen.pairs if _is_answered(judging, one.pair, said)]
    verdicts = [read_pair(judging, one.pair, said) for one in answered]
    version = pairs_version(recipe)
    rows = [_row(one, verdict, version) for one, verdict in zip(answered, verdicts, strict=True)]
    table = [*chosen.judged.iter_rows(named=True), *rows]
    if not table and not chosen.pairs:
        raise TableError(
            f"There is nothing to compare: none of {chosen.prompts:,} prompts has two different answers that break no "
            "rule. Raise generation.samples or the temperature, or drop a rule; builder select shows what each breaks."
        )
    ordered = sorted(table, key=lambda row: (row["prompt_id"], row["chosen_id"], row["rejected_id"]))
    run.replace("pairs", columns_table("pairs", ordered))
    return PairsResult(
        prompts=chosen.prompts,
        without_pair=chosen.without_pair,
        judged=len(rows),
        kept=chosen.judged.height,
        unanswered=len(chosen.pairs) - len(rows),
        gaps=dict(sorted(Counter(int(row["gap"]) for row in table).items())),
        bias=position_bias(verdicts),
    )


def require_pair_trust(measured: PairCalibration, max_error_rate: float) -> None:
    """Raise VerifyError where the judge prefers the wrong reply of known pairs too often, or decides none of them.

    Where no prompt has a reply proved correct and one proved wrong, nothing is measured, and nothing raised.
    """
    decided, known = measured.right + measured.wrong, measured.bias.pairs
    if not known:
        return
    if not decided:
        problem = f"it decided none of {known} pairs of a right and a wrong reply"
    elif measured.wrong > max_error_rate * decided:
        share = measured.wrong / decided
        problem = f"it preferred the wrong reply in {measured.wrong} of {decided} known pairs ({share:.1%})"
    else:
        return
    raise VerifyError(
        f"The judge is not believed: {problem}; judge.max_error_rate is {max_error_rate:.1%}. No pair was written, and "
        "its replies are kept. Take another model, or more judge.votes; builder verify --calibrate tries again."
    )


def pairs_version(recipe: Recipe) -> str:
    """Model and votes in words, and a hash of all that decides a vote on a pair: another judge's are made anew."""
    judging, section = Judging.of(recipe, PAIR), recipe.require_judge()
    requests = [[one.key, one.max_tokens] for one in pair_requests(judging, Pair("", "q", "r", "one", "two"))]
    model = f"{unplaced(section.model)}@{section.revision}" if section.revision else unplaced(section.model)
    return f"{sha256_hex(canonical_json(requests))[:8]} {model} {section.votes} votes at {section.temperature:g}"


def _compared(
    row: Mapping[str, Any], texts: Mapping[str, str], before: Collection[frozenset[str]], number: int, seed: int
) -> list[Comparison]:
    """New pairs of one prompt, so that with those of `before` there are `number`: neighbours in a seeded order first,
    so that no reply is in many of them."""
    gold = row["gold"]
    asked = {"gold": gold or ""}
    ids = [one for one in row["response_id"] if is_askable(asked, texts.get(one, ""))]
    question = question_text(row["messages"])
    found: list[Comparison] = []
    for one, two in _neighbours(sorted(ids, key=lambda one: order_key(one, seed))):
        if len(before) + len(found) >= number:
            break
        if texts[one] != texts[two] and frozenset((one, two)) not in before:
            found.append(Comparison(one, two, Pair(row["prompt_id"], question, gold, texts[one], texts[two])))
    return found


def _neighbours(ids: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every pair once, those close together first."""
    for distance in range(1, len(ids)):
        yield from zip(ids, ids[distance:], strict=False)


def _is_answered(judging: Judging, pair: Pair, said: Said) -> bool:
    """Whether every vote of both orders came."""
    return not any(MISSING in judging.votes(judging.asked(parts), said) for parts in pair.parts)


def _row(one: Comparison, verdict: PairVerdict, version: str) -> dict[str, Any]:
    chosen, rejected, words = one.one_id, one.two_id, _STRAIGHT
    if verdict.gap < 0:
        chosen, rejected, words = rejected, chosen, _SWAPPED
    return {
        "prompt_id": one.pair.prompt_id,
        "chosen_id": chosen,
        "rejected_id": rejected,
        "votes": [words.get(vote, vote) for vote in verdict.votes],
        "gap": float(abs(verdict.gap)),
        "judge_version": version,
    }
