"""Models × benchmarks of one `builder eval`; every question is read before the first request."""

import difflib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from builder.budget import Budget, open_budget
from builder.config import Recipe
from builder.errors import UsageError
from builder.eval_config import EvaluationSection
from builder.eval_paired import Paired, check_alike, paired, stored_against
from builder.evaluate import (
    Benchmark,
    Evaluation,
    Model,
    Prepared,
    Sampling,
    evaluate,
    facts_of,
    named_model,
    prepare,
    served,
    stored,
    teacher_model,
)
from builder.options import Context
from builder.section import PromptSource
from builder.show import note

_ENDPOINT: Final = "OPENAI_BASE_URL"


def sampling_of(recipe: Recipe, temperature: float | None, samples: int | None) -> Sampling:
    """What the command line says, else section `evaluation`, else one reply at temperature 1."""
    section = recipe.evaluation or EvaluationSection()
    return Sampling(
        samples=section.samples if samples is None else samples,
        temperature=section.temperature if temperature is None else temperature,
        top_p=section.top_p,
        max_tokens=section.max_tokens,
    )


def benchmarks_of(recipe: Recipe, files: Sequence[str], names: Sequence[str]) -> list[Benchmark]:
    """Those that the command line names, else those of the recipe, else its prompts. Raises UsageError."""
    section = recipe.evaluation or EvaluationSection()
    if hub := [file for file in files if file.startswith("hf://")]:
        raise UsageError(
            f"--questions takes files, and {hub[0]} is a dataset, which needs a revision: name it in the recipe, "
            "evaluation: {benchmarks: {NAME: {source: …, revision: …}}}, and give --benchmark NAME."
        )
    for name in names:
        if name not in section.benchmarks:
            near = difflib.get_close_matches(name, section.benchmarks, n=1, cutoff=0.6)
            known = ", ".join(section.benchmarks) or "none"
            meant = f"; did you mean {near[0]}?" if near else "."
            raise UsageError(f"--benchmark {name!r} is not in evaluation.benchmarks, which has {known}{meant}")
    chosen = [Benchmark(Path(file.removesuffix(".gz")).stem, [PromptSource(source=file)]) for file in files]
    wanted = names if files or names else list(section.benchmarks)
    chosen += [Benchmark(name, [section.benchmarks[name]]) for name in wanted]
    called = [one.name for one in chosen]
    if twice := sorted({name for name in called if called.count(name) > 1}):
        raise UsageError(f"Two benchmarks are called {', '.join(twice)}; no table could tell them apart. Rename one.")
    return chosen or [Benchmark("prompts", recipe.prompts)]


@dataclass(frozen=True)
class Asked:
    """What all models are asked alike, and where."""

    context: Context
    benchmarks: Sequence[Benchmark]
    endpoint: str | None
    sampling: Sampling

    def all(
        self, names: Sequence[str], label: str | None, against: str | None, *, teacher: bool
    ) -> tuple[list[Evaluation], list[list[Paired]]]:
        """Every model on every benchmark, and its paired differences to `against`, a list a model.

        Raises BuilderError: for models and questions that cannot be asked before anything is sent.
        """
        run, recipe, limit = self.context.run, self.context.recipe, self.context.steps.limit
        models = [named_model(recipe, name, label) for name in names]
        other = self._other(names, models, against)
        paid = [teacher_model(recipe)] if teacher else []
        every = [
            [prepare(run, recipe, model, one, self.sampling, limit=limit) for one in self.benchmarks]
            for model in (*models, *paid)
        ]
        for each in every:
            self._check_reachable(each)
        for one in every[0]:
            self._warn(one)
        is_stored = against is not None and other is None
        before = self._stored(every[: len(models)], against or "") if is_stored else []
        budgets = [self._budget(prepared) for prepared in every]
        found = _told_apart([self._ask(*both) for both in zip(every, budgets, strict=True)])
        theirs = before if other is None else found[other]
        rows = [
            [paired(run, one, than) for one, than in zip(each, theirs, strict=True)]
            for each in found[: len(models)]
            if theirs and each is not theirs
        ]
        return [one for each in found for one in each], rows

    def _check_reachable(self, every: Sequence[Prepared]) -> None:
        """Raise UsageError for a model that is to be asked and is neither a folder nor behind any endpoint."""
        model, is_missing = every[0].model, any(one.missing for one in every)
        if model.folder or not is_missing or self.endpoint or model.served.endpoints or os.environ.get(_ENDPOINT):
            return
        raise UsageError(
            f"{model.name} is no folder with a model here, and there is no endpoint to ask for a model of that name. "
            f"Correct --model, or name its server with --endpoint or {_ENDPOINT}."
        )

    def _stored(self, every: Sequence[Sequence[Prepared]], against: str) -> list[Evaluation]:
        """What is stored of `against`, a benchmark each. Raises UsageError where a model is to be asked otherwise."""
        run = self.context.run
        found = [stored_against(run, against, facts_of(one)) for one in every[0]]
        for prepared in every:
            for one, theirs in zip(prepared, found, strict=True):
                check_alike(facts_of(one), theirs)
        return found

    def _other(self, names: Sequence[str], models: list[Model], against: str | None) -> int | None:
        """Place in `models` of the one to compare with, added where it is neither there nor stored; None if stored."""
        if against is None:
            return None
        for place, (name, one) in enumerate(zip(names, models, strict=True)):
            if against in (name, one.name):
                if len(models) == 1:
                    raise UsageError(f"--against {against} is the model itself; name another one with --model.")
                return place
        is_stored = any(stored(self.context.run, against, one.name) for one in self.benchmarks)
        if is_stored and not Path(against).is_dir():
            return None
        models.append(named_model(self.context.recipe, against))
        return len(models) - 1

    def _ask(self, every: Sequence[Prepared], budget: Budget | None) -> list[Evaluation]:
        with served(every, None if every[0].model.role == "teacher" else self.endpoint) as url:
            return [self._measure(one, url, budget) for one in every]

    def _measure(self, one: Prepared, url: str | None, budget: Budget | None) -> Evaluation:
        began, wanted = time.monotonic(), len(one.prompts.rows) * self.sampling.samples
        with self.context.reporter.progress(f"eval {one.model.name} on {one.benchmark.name}", wanted) as meter:
            return evaluate(
                one,
                endpoint=url,
                budget=budget,
                progress=lambda tally: meter.update(tally.done, wanted, note(tally, time.monotonic() - began)),
            )

    def _budget(self, every: Sequence[Prepared]) -> Budget | None:
        """The command line's limits over what this run and these evaluations took; None where nothing is paid."""
        limits, model = self.context.steps.limits, every[0].model
        if model.role != "teacher":
            return None
        runs = (self.context.run, *(one.run for one in every))
        opened = [open_budget(run, model.served, limits.cost, limits.tokens) for run in runs]
        return replace(opened[0], cost=sum(one.cost for one in opened), tokens=sum(one.tokens for one in opened))

    def _warn(self, prepared: Prepared) -> None:
        name, prompts = prepared.benchmark.name, prepared.prompts
        said = list(prompts.notes)
        if prompts.duplicates:
            said.append(f"{prompts.duplicates:,} rows repeat a question; each question counts once")
        if prepared.left_out:
            said.append(
                f"{prepared.left_out:,} questions have no gold that a verifier reads, golds that disagree, or name the "
                "judge, which is not asked about evaluations; they are neither asked nor counted"
            )
        for text in said:
            self.context.reporter.warn(f"{name}: {text}")


def _told_apart(found: list[list[Evaluation]]) -> list[list[Evaluation]]:
    """Models of one name (folders called alike) under that name and the beginning of their hash."""
    called = [each[0].model for each in found]
    return [
        [replace(one, model=f"{one.model} {(one.model_sha256 or '')[:8]}") for one in each]
        if called.count(each[0].model) > 1 and each[0].model_sha256
        else each
        for each in found
    ]
