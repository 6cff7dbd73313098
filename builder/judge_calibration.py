"""How often a judge errs on answers that are known to be right or wrong: measured before any verdict of it counts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from builder.claim import claimed
from builder.config import Recipe
from builder.errors import VerifyError
from builder.judge_ask import Judging, Said, Send, distinct, is_answered, majority, said_by
from builder.judge_known import Group, Known, known_answers, known_pairs
from builder.judge_pairs import PositionBias, pair_requests, position_bias, read_pair
from builder.judge_prompt import PAIR
from builder.requests import Request
from builder.statistics import wilson_interval
from builder.store import Run
from builder.tally import Tally


@dataclass(frozen=True)
class Measured:
    """Verdicts on known answers of one kind; `null` where the votes have no majority."""

    kind: str
    is_right: bool
    cases: int
    correct: int
    wrong: int
    null: int

    @property
    def errors(self) -> int:
        return self.wrong if self.is_right else self.correct

    @property
    def decided(self) -> int:
        return self.correct + self.wrong

    @property
    def error_rate(self) -> float | None:
        """Errors among verdicts that were given; None without one."""
        return self.errors / self.decided if self.decided else None

    @property
    def interval(self) -> tuple[float, float]:
        """95% Wilson interval of the error rate."""
        return wilson_interval(self.errors, self.decided)


@dataclass(frozen=True)
class Calibration:
    """What a judge said of known answers. `totals` are those of right ones, wrong ones, and wrong ones with orders.

    Requests, tokens and USD are of the votes that were sent now; stored ones are free. USD is null without prices.
    """

    kinds: tuple[Measured, ...]
    totals: tuple[Measured, Measured, Measured]
    max_error_rate: float
    votes: int
    sent: int
    tokens: int
    cost_usd: float | None

    @property
    def problem(self) -> str | None:
        """Why this judge cannot be believed, in values; None where it can."""
        right, wrong, injected = self.totals
        for measured, what in ((wrong, "wrong"), (right, "right")):
            if not measured.cases:
                return f"no answer is known to be {what}"
            if not measured.decided:
                return f"it gave no verdict on any of {measured.cases} answers that are known to be {what}"
        for measured, what in (
            (wrong, "wrong answers correct"),
            (injected, "wrong answers that give it orders correct"),
            (right, "right answers wrong"),
        ):
            rate = measured.error_rate
            if rate is not None and rate > self.max_error_rate:
                return f"it called {measured.errors} of {measured.decided} {what} ({rate:.1%})"
        return None

    def require_trust(self) -> None:
        """Raise VerifyError where the judge cannot be believed."""
        if (problem := self.problem) is not None:
            raise VerifyError(
                f"The judge is not believed: {problem}; judge.max_error_rate is {self.max_error_rate:.1%}. None of its "
                "verdicts was written, and its replies are kept. Take another model, or more judge.votes; give golds "
                "with prompts that a verifier reads, so that answers are known; builder verify --calibrate tries again."
            )


@dataclass(frozen=True)
class PairCalibration:
    """Pairs of a right and a wrong reply: `right` and `wrong` count those in which it has more votes, else `tied`."""

    right: int
    wrong: int
    tied: int
    bias: PositionBias


def calibrate(run: Run, recipe: Recipe, send: Send) -> Calibration:
    """Ask the judge about known answers. What is stored costs nothing; raises as `send`.

    They are the run's, whatever the shard, so one shard calibrates at a time and seals what it was told: the others
    find it in the tables. What is made of golds is the same for all of them and asked before their own votes, so that
    no two shards ask the same.
    """
    with claimed(run, "calibrate", wait=True):
        return _calibrate(run, recipe, send)


def _calibrate(run: Run, recipe: Recipe, send: Send) -> Calibration:
    judge, judging = recipe.require_judge(), Judging.of(recipe)
    known = known_answers(run, recipe.generation.seed)
    questions = [judging.asked(one.parts) for one in known]
    tally = Tally()
    if {"right", "wrong"} <= {one.group for one in known}:  # else nothing can be measured, whatever it says
        votes = (judging.requests(one.prompt_id, question) for one, question in zip(known, questions, strict=True))
        tally = _sent("calibration votes", judging, send, chain.from_iterable(votes), said_by(run))
    said = said_by(run)
    verdicts = [(one, majority(judging.votes(question, said))) for one, question in zip(known, questions, strict=True)]
    kinds = dict.fromkeys((one.group, one.kind) for one in known)
    return Calibration(
        kinds=tuple(_measured(kind, group, verdicts, kind) for group, kind in kinds),
        totals=(
            _measured("right answers", "right", verdicts),
            _measured("wrong answers", "wrong", verdicts),
            _measured("wrong ones with orders", "injected", verdicts),
        ),
        max_error_rate=judge.max_error_rate,
        votes=judge.votes,
        sent=tally.replies,
        tokens=tally.prompt_tokens + tally.completion_tokens,
        cost_usd=None if judge.prices is None else tally.cost_usd,
    )


def calibrate_pairs(run: Run, recipe: Recipe, send: Send) -> PairCalibration:
    """Ask the judge which of a right and a wrong reply to one prompt is better, both ways round; raises as `send`."""
    with claimed(run, "calibrate", wait=True):
        return _calibrate_pairs(run, recipe, send)


def _calibrate_pairs(run: Run, recipe: Recipe, send: Send) -> PairCalibration:
    judging = Judging.of(recipe, PAIR)
    pairs = known_pairs(run, recipe.generation.seed)
    if pairs:
        requests = chain.from_iterable(pair_requests(judging, pair) for pair in pairs)
        _sent("pair votes", judging, send, requests, said_by(run))
    said = said_by(run)
    verdicts = [read_pair(judging, pair, said) for pair in pairs]
    return PairCalibration(
        right=sum(one.gap > 0 for one in verdicts),
        wrong=sum(one.gap < 0 for one in verdicts),
        tied=sum(one.gap == 0 for one in verdicts),
        bias=position_bias(verdicts),
    )


def _sent(what: str, judging: Judging, send: Send, requests: Iterable[Request], said: Said) -> Tally:
    """Send those that no reply in the tables answers: another host's journal may be closed to this one."""
    wanted = [request for request in distinct(requests) if not is_answered(request, said)]
    return send(what, judging.wire, wanted, len(wanted)) if wanted else Tally()


def _measured(
    name: str, group: Group, verdicts: Sequence[tuple[Known, str | None]], kind: str | None = None
) -> Measured:
    """Verdicts on the known answers of a group, or of one kind of it."""
    given = [verdict for one, verdict in verdicts if one.group == group and kind in (None, one.kind)]
    counts = {verdict: given.count(verdict) for verdict in ("correct", "wrong", None)}
    return Measured(name, group == "right", len(given), counts["correct"], counts["wrong"], counts[None])
