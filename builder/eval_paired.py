"""Two models on the same questions: the paired difference, and whether one is worse."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from builder.errors import UsageError
from builder.eval_counts import judged, shares
from builder.evaluate import Evaluation, recounted, replies_of, stored
from builder.statistics import paired_interval
from builder.store import Run

Reading = Literal["worse", "better", "no difference shown"]
_SAID: Final = "no difference shown"


@dataclass(frozen=True)
class Paired:
    """pass@1 of `model` less that of `against` over the same questions, with its 95% interval, all in [−1, 1].

    `won` and `lost` are questions of which the model got more, or fewer, replies right. `verdict` is `worse` or
    `better` where the interval leaves out 0; a difference beyond `would_see`, half the interval, would have been shown.
    """

    benchmark: str
    model: str
    against: str
    questions: int
    samples: int
    difference: float
    low: float
    high: float
    won: int
    lost: int
    verdict: Reading
    would_see: float


def check_alike(model: Mapping[str, Any], against: Evaluation) -> None:
    """Raise UsageError naming what was not the same when both were asked. `model` are fields of an `Evaluation`."""
    theirs = vars(against)
    different = _asked_differently(model, theirs) + _unequal(
        {name: (model[name], theirs[name]) for name in ("samples", "verifiers")}
    )
    if different:
        raise UsageError(
            f"{model['model']} and {against.model} were not asked alike on {model['benchmark']}: "
            f"{'; '.join(different)}. A paired difference means something over the same questions in the same settings "
            "only: ask both alike, in one builder eval where both can be asked."
        )


def paired(run: Run, model: Evaluation, against: Evaluation) -> Paired:
    """The difference, from the stored replies of both. Raises UsageError as `check_alike`."""
    check_alike(vars(model), against)
    ours, theirs = (shares(judged(replies_of(run, one), one.role, samples=one.samples)) for one in (model, against))
    differences = [ours[question] - theirs[question] for question in sorted(ours)]
    mean, low, high = paired_interval(differences, 1 / model.samples)
    return Paired(
        benchmark=model.benchmark,
        model=model.model,
        against=against.model,
        questions=len(differences),
        samples=model.samples,
        difference=mean,
        low=low,
        high=high,
        won=sum(one > 0 for one in differences),
        lost=sum(one < 0 for one in differences),
        verdict="worse" if high < 0 else "better" if low > 0 else _SAID,
        would_see=(high - low) / 2,
    )


def stored_against(run: Run, name: str, like: Mapping[str, Any]) -> Evaluation:
    """The stored evaluation of a model by its name on the benchmark of `like`, its first samples counted anew.

    The one that was asked alike, else the latest. Raises UsageError where there is none.
    """
    found = stored(run, name, like["benchmark"])
    if not found:
        raise UsageError(
            f"No evaluation called {name!r} on {like['benchmark']} is stored, on other benchmarks there is. Evaluate "
            f"it there first: builder eval … --model MODEL --label {name}."
        )
    chosen = next((one for one in found if not _asked_differently(like, vars(one))), found[0])
    again = recounted(run, replace(chosen, samples=like["samples"]))
    return replace(again, samples=again.replies // again.questions)


def harmed(rows: Sequence[Paired]) -> str:
    """One line on a table of paired differences of one model: how many benchmarks it is worse on."""
    worse = [row.benchmark for row in rows if row.verdict == "worse"]
    named = f" ({', '.join(worse)})" if worse else ""
    chance = len(rows) * 0.025
    return f"harmed: {len(worse)} of {len(rows)} benchmarks{named}; by chance alone about {chance:.2g} would be"


def _asked_differently(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What was not the same when both were asked, but for samples and verifiers, in words with both values."""
    found = ["other questions or other golds"] if a["questions_sha256"] != b["questions_sha256"] else []
    pairs = {"temperature": (a["temperature"], b["temperature"])}
    names = sorted({*a["settings"], *b["settings"]})
    return found + _unequal(pairs | {name: (a["settings"].get(name), b["settings"].get(name)) for name in names})


def _unequal(pairs: Mapping[str, tuple[Any, Any]]) -> list[str]:
    return [f"{name} {ours!r} and {theirs!r}" for name, (ours, theirs) in pairs.items() if ours != theirs]
