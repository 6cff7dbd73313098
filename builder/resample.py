"""Adaptive resampling: a prompt with too few correct replies is asked again, round after round.

With one number of samples for every prompt, dropping wrong answers leaves the easy prompts
(github.com/open-thoughts/open-thoughts, issue 21). `generation.until_correct` asks the others again instead. A round is
decided by what is stored and judged alone, so a call that was killed goes on where it was, and nothing is paid twice.
"""

from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import count, groupby
from typing import Any, Literal

import polars as pl

from builder import journal as journals
from builder.config import Recipe, UntilCorrect
from builder.identity import response_id
from builder.prompts import Prompts
from builder.release_rows import deciding_verdicts
from builder.requests import Request, requests, satisfied, total
from builder.store import Run
from builder.tally import Tally
from builder.verify import JUDGE

Outcome = Literal["missing", "correct", "wrong", "untold", "unjudged"]
"""Of one request: not stored; stored with that verdict, with one that says neither, with none."""


@dataclass(frozen=True)
class Resampled:
    """What the rounds came to. All counts but `rounds` are prompts, and add up to `prompts`.

    `enough` have the wanted correct replies at every temperature where anything is known; `lacking` have fewer at one,
    `unsolved` none at all. `untold` ones are never asked again: they have no gold, or none of their replies was called
    correct or wrong. `limit` is the budget that ended the rounds, if one did.
    """

    prompts: int
    rounds: int = 0
    enough: int = 0
    lacking: int = 0
    unsolved: int = 0
    untold: int = 0
    limit: str | None = None


def resample(
    run: Run,
    recipe: Recipe,
    prompts: Prompts,
    *,
    shard: tuple[int, int] = (0, 1),
    ask: Callable[[str, list[Request]], Tally],
    verify: Callable[[], object],
    say: Callable[[str], None],
) -> tuple[Resampled, Tally]:
    """Ask again until every prompt of the shard has its correct replies, its most samples, or the budget ends.

    `ask(name, requests)` sends a round, `verify()` gives the shard's replies their verdicts, `say` gets a line a
    round. The first `generation.samples` of each prompt and temperature are asked already. Returns the counts and what
    the rounds did in all; where that says that a round was interrupted or failed, the counts are those before it.
    """
    rounds = _Rounds(run, recipe, prompts, shard)
    done = Tally()
    for number in count(2):
        verify()
        wanted = rounds.next()
        if not wanted or done.limit is not None:
            return rounds.result(number - 2, done.limit), done
        lack = "1 prompt of {:,} lacks" if len(rounds.open) == 1 else f"{len(rounds.open):,} prompts of {{:,}} lack"
        say(f"round {number}: {lack.format(rounds.prompts)} correct replies; {len(wanted):,} more asked")
        add(done, ask(f"round {number}", wanted))
        if done.stopped or done.failed:
            break
    return rounds.result(number - 1, done.limit), done


def add(tally: Tally, more: Tally) -> None:
    """Count `more` into `tally`; what ended the later call stands."""
    for name in (one.name for one in fields(Tally) if one.type is int or one.type is float):
        setattr(tally, name, getattr(tally, name) + getattr(more, name))
    tally.stopped, tally.limit = more.stopped, more.limit
    tally.last_error = more.last_error or tally.last_error
    tally.errors = dict(Counter(tally.errors) + Counter(more.errors))


def bounds(
    run: Run, recipe: Recipe, prompts: Prompts | int, stored: dict[bytes, int], answered: Container[str]
) -> tuple[int, int]:
    """Least and most requests that rounds may still send beside the first `generation.samples`, by today's verdicts.

    `prompts` is their number where they have not been read; those that the run knows are counted one by one. Of a
    prompt without a reply yet, the least is what `correct` needs above `samples`.
    """
    until = recipe.generation.until_correct
    if until is None:
        return 0, 0
    first, temperatures = recipe.generation.samples, len(recipe.generation.temperatures)
    if isinstance(prompts, Prompts):
        rows = prompts.rows
        others = sum(_can_be_told(recipe, row) and row["prompt_id"] not in answered for row in rows)
    else:
        rows = run.read("prompts", ["prompt_id", "messages", "gold", "verifier"]).to_dicts()
        others = max(0, prompts - sum(row["prompt_id"] in answered for row in rows))
    known = [row for row in rows if row["prompt_id"] in answered and _can_be_told(recipe, row)]
    least, most = others * temperatures * max(0, until.correct - first), others * temperatures * (until.samples - first)
    opinions = _opinions(run)
    for _, asks in _cells(recipe, until, known, (0, 1)):
        outcomes = [_outcome(request, stored, opinions) for request in asks]
        meant = samples_meant(outcomes, first, until.correct, tried=0)
        is_begun = "missing" not in outcomes[:first]
        if outcomes[:meant].count("correct") < until.correct and not (is_begun and set(outcomes[:first]) == {"untold"}):
            least += outcomes[first:meant].count("missing") if is_begun else max(0, until.correct - first)
            most += outcomes[first:].count("missing")
    return least, most


def samples_meant(outcomes: Sequence[Outcome], first: int, correct: int, *, tried: int) -> int:
    """How many samples, from index 0, a prompt and temperature is asked for by now.

    `outcomes` are those of all samples that it may have, by index; `first` is `generation.samples`. Round after round
    it is as many more as correct ones are missing, so that none can be too many. A round is over when each of its
    requests is stored, or was `tried` by this call: an index below that number is not asked again.
    """
    meant = first
    while meant < len(outcomes) and "missing" not in outcomes[tried:meant]:
        found = Counter(outcomes[:meant])
        if found["correct"] >= correct or not (found["correct"] or found["wrong"]):
            break
        meant = min(len(outcomes), meant + correct - found["correct"])
    return meant


@dataclass
class _Rounds:
    """Prompts of a shard that still lack correct replies, and how far each was asked by this call."""

    run: Run
    recipe: Recipe
    given: Prompts
    shard: tuple[int, int]
    open: list[dict[str, Any]] = field(init=False)
    prompts: int = field(init=False)
    _tried: dict[tuple[str, float], int] = field(default_factory=dict)
    _closed: Counter[str] = field(default_factory=Counter)
    _standing: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        generation = self.recipe.generation
        each = len(generation.temperatures) * generation.samples
        self.prompts = total(self.recipe, self.given, shard=self.shard) // each
        self.open = [row for row in self.given.rows if row.get("gold")]

    def next(self) -> list[Request]:
        """Requests of the next round; prompts for which there is none are no longer open."""
        until = self.recipe.generation.until_correct
        if until is None:
            return []
        first, wanted = self.recipe.generation.samples, list[Request]()
        stored, opinions = journals.stored_replies(self.run.journal_dir), _opinions(self.run)
        found: dict[str, list[list[Outcome]]] = {}
        asked_again: set[str] = set()
        for cell, asks in _cells(self.recipe, until, self.open, self.shard):
            outcomes = [_outcome(request, stored, opinions) for request in asks]
            tried = self._tried.get(cell, first)
            meant = self._tried[cell] = samples_meant(outcomes, first, until.correct, tried=tried)
            missing = [asks[index] for index in range(tried, meant) if outcomes[index] == "missing"]
            wanted += missing
            found.setdefault(cell[0], []).append(outcomes)
            if missing:
                asked_again.add(cell[0])
        self._standing = {prompt: _standing(cells, until.correct) for prompt, cells in found.items()}
        self._closed.update(word for prompt, word in self._standing.items() if prompt not in asked_again)
        self.open = [row for row in self.open if row["prompt_id"] in asked_again]
        self._standing = {prompt: self._standing[prompt] for prompt in asked_again}
        return wanted

    def result(self, rounds: int, limit: str | None) -> Resampled:
        """Counts by the latest verdicts that `next` saw."""
        found = self._closed + Counter(self._standing.values())
        told = {name: found[name] for name in ("enough", "lacking", "unsolved")}
        return Resampled(self.prompts, rounds, **told, untold=self.prompts - sum(told.values()), limit=limit)


def _standing(cells: Sequence[Sequence[Outcome]], correct: int) -> str:
    """Where a prompt stands, in the words of `Resampled`; `cells` are the outcomes at its temperatures."""
    found = [cell.count("correct") for cell in cells if "correct" in cell or "wrong" in cell]
    if not found:
        return "untold"
    if min(found) >= correct:
        return "enough"
    return "lacking" if any(found) else "unsolved"


def _cells(
    recipe: Recipe, until: UntilCorrect, rows: list[dict[str, Any]], shard: tuple[int, int]
) -> Iterator[tuple[tuple[str, float], list[Request]]]:
    """Each prompt of the shard at each temperature, with the requests of all samples that it may have, by index."""
    generation = recipe.generation.model_copy(update={"samples": until.samples})
    whole = recipe.model_copy(update={"generation": generation})
    asked = requests(whole, Prompts(rows, len(rows), 0, 0), shard=shard)
    for cell, asks in groupby(asked, key=lambda request: (request.prompt_id, request.temperature)):
        yield cell, list(asks)


def _opinions(run: Run) -> dict[str, Outcome]:
    """What the deciding verdict of each judged reply says."""
    says = pl.when(pl.col("verdict").is_in(["correct", "wrong"])).then("verdict").otherwise(pl.lit("untold"))
    return dict(deciding_verdicts(run).select("response_id", says).collect().iter_rows())


def _outcome(request: Request, stored: dict[bytes, int], opinions: dict[str, Outcome]) -> Outcome:
    if not satisfied(stored, request):
        return "missing"
    cut_at = stored[bytes.fromhex(request.key)]
    finish = None if cut_at == -1 else "length"
    return opinions.get(response_id(request.key, finish_reason=finish, max_tokens=cut_at), "unjudged")


def _can_be_told(recipe: Recipe, row: dict[str, Any]) -> bool:
    """Whether the prompt has a gold that a verifier, or the recipe's judge, compares answers with."""
    return bool(row["gold"]) and (row["verifier"] not in (None, JUDGE) or recipe.judge is not None)
