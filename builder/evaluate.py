"""A model on questions with golds, by the same generate and verify code that makes the data."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from builder import journal
from builder.budget import Budget
from builder.config import Recipe, Teacher
from builder.errors import BudgetError, EndpointError, TableError, VerifyError
from builder.eval_counts import AtK, Counts, counted, judged
from builder.generate import generate
from builder.identity import canonical_json, sha256_hex
from builder.models import model_sha256
from builder.prompts import Prompts, load_prompts, write_prompts
from builder.release_rows import unplaced
from builder.requests import need
from builder.sandbox import sandbox_problem
from builder.section import Endpoint, PromptSource
from builder.store import Run, write_text
from builder.tally import Progress
from builder.verifiers import verifier_version
from builder.verify import JUDGE, verify


@dataclass(frozen=True)
class Sampling:
    """How models are sampled: `samples` replies a question. None stands for the recipe's `generation`."""

    samples: int = 1
    temperature: float = 1.0
    top_p: float | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class Benchmark:
    """Questions under one name."""

    name: str
    sources: Sequence[PromptSource]


@dataclass(frozen=True)
class Model:
    """A model to be asked. `identity` is what its replies belong to, `served` the same with endpoints and prices.

    Without a `folder` it has to be behind an endpoint. `role` is what its replies are in the tables of the evaluation:
    `teacher` where they cost what the recipe's prices say.
    """

    name: str
    identity: Teacher
    served: Teacher
    system_prompt: str | None
    folder: Path | None = None
    role: str = "eval"


@dataclass(frozen=True)
class Evaluation(Counts):
    """A model on a benchmark, as written to `eval/<folder>.json`.

    `left_out` are questions without a gold that a verifier, no judge, reads, `duplicates` rows that repeat a question.
    `settings` are what else decides replies, `verifiers` those that judged, with their versions. `questions_sha256` is
    over the questions with their golds. `folder` holds the replies, below `eval/`.
    """

    model: str
    model_sha256: str | None
    benchmark: str
    temperature: float
    samples: int
    left_out: int
    duplicates: int
    settings: dict[str, Any]
    verifiers: dict[str, str]
    questions_sha256: str
    folder: str
    role: str


@dataclass(frozen=True)
class Prepared:
    """One model on one benchmark before its first request: questions that can be judged, and where replies go."""

    model: Model
    benchmark: Benchmark
    asked: Recipe
    prompts: Prompts
    left_out: int
    run: Run
    missing: int


def named_model(recipe: Recipe, model: str, label: str | None = None) -> Model:
    """The model in a folder, else the one that an endpoint knows by this name; asked with the student's system prompt.

    Raises UsageError for a folder without weights.
    """
    folder = Path(model)
    digest = model_sha256(folder) if folder.is_dir() else None
    name = label or (folder.name or folder.resolve().name if digest else model)
    asked = Teacher(model=name if digest else model, revision=digest, tokenizer=str(folder) if digest else None)
    system_prompt = recipe.student.system_prompt if recipe.student else None
    return Model(name, asked, asked, system_prompt, folder if digest else None)


def teacher_model(recipe: Recipe) -> Model:
    """The recipe's teacher as the data has it: its endpoints, prices and system prompt."""
    teacher = recipe.require_teacher()
    identity = Teacher(model=teacher.model, revision=teacher.revision, tokenizer=teacher.tokenizer)
    prompt = recipe.generation.system_prompt
    return Model(unplaced(teacher.model), identity, teacher, prompt, role="teacher")


def prepare(
    run: Run, recipe: Recipe, model: Model, benchmark: Benchmark, sampling: Sampling, *, limit: int | None = None
) -> Prepared:
    """Read the questions, and say how many replies are missing. Sends and writes nothing.

    Raises SourceError for questions that cannot be read, VerifyError where none of them can be judged here.
    """
    update: dict[str, Any] = {"temperatures": [sampling.temperature], "samples": sampling.samples, "logprobs": False}
    update["until_correct"] = None  # a benchmark asks every question alike
    given = {"top_p": sampling.top_p, "max_tokens": sampling.max_tokens}
    update |= {name: value for name, value in given.items() if value is not None}
    asked = Recipe(
        name=recipe.name,
        prompts=list(benchmark.sources),
        teacher=model.identity,
        generation=recipe.generation.model_copy(update=update | {"system_prompt": model.system_prompt}),
    )
    prompts = load_prompts(asked, limit=limit)
    rows = [row for row in prompts.rows if (row["gold"] or "").strip() and row["verifier"] not in (None, JUDGE)]
    if not rows:
        raise VerifyError(
            f"None of the {len(prompts.rows):,} questions of {benchmark.name} has a gold that a verifier here can "
            "read, so there is nothing to count and nothing was sent. Give questions with gold and gold_type; a judge "
            "is not asked about evaluations."
        )
    if any(row["verifier"] == "code" for row in rows) and (problem := sandbox_problem()):
        raise VerifyError(
            f"{benchmark.name} has programs to judge, and this machine has no sandbox to run them in ({problem}). "
            "Nothing was sent: replies without a verdict would not count."
        )
    # Everything that can change a reply but their number: other settings are another evaluation, in a run of its own.
    settings = asked.decisive()
    del settings["generation"]["samples"]
    identity = sha256_hex(canonical_json(settings))[:8]
    own = Run(run.eval_dir / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', model.name)}-{identity}")
    kept = replace(prompts, rows=rows)
    missing = need(asked, kept, journal.stored_replies(own.journal_dir)).missing
    return Prepared(model, benchmark, asked, kept, len(prompts.rows) - len(rows), own, missing)


def evaluate(
    prepared: Prepared, *, endpoint: str | None = None, budget: Budget | None = None, progress: Progress | None = None
) -> Evaluation:
    """Ask what is missing at `endpoint` (default: the model's own, else the environment's), verify, count, write.

    Replies live in a run of their own below `eval/`, one for each set of settings, so a second call pays nothing.
    Raises EndpointError where questions got no reply, BudgetError at the limit of `budget`; replies are kept.
    """
    served = prepared.model.served
    if endpoint is not None:
        served = served.model_copy(update={"endpoints": [Endpoint(url=endpoint)]})
    write_prompts(prepared.run, prepared.prompts)
    tally = generate(
        prepared.run,
        prepared.asked.model_copy(update={"teacher": served}),
        prepared.prompts,
        role=prepared.model.role,
        progress=progress,
        budget=budget,
    )
    what = f"{prepared.model.name} on {prepared.benchmark.name}"
    if tally.limit is not None:
        raise BudgetError(
            f"{what} stopped at {tally.limit}. {tally.done:,} of {tally.total:,} replies are stored and kept; a score "
            "of them would be of another benchmark. Rerun with a larger limit for the rest."
        )
    if tally.stopped:
        raise KeyboardInterrupt
    if tally.failed or tally.set_aside:
        raise EndpointError(
            f"{what}: {tally.failed + tally.set_aside} of {tally.total} replies did not come ({tally.last_error}). "
            "A score without them would be of another benchmark; rerun, the others are kept."
        )
    found = _measured(prepared.run, facts_of(prepared))
    write_text(json.dumps(asdict(found), indent=2) + "\n", prepared.run.root.with_name(f"{found.folder}.json"))
    return found


def recounted(run: Run, evaluation: Evaluation) -> Evaluation:
    """The evaluation counted anew from its replies below `eval/`, by today's verifiers. Raises VerifyError."""
    facts = {one.name: getattr(evaluation, one.name) for one in fields(Evaluation)}
    return _measured(replies_of(run, evaluation), facts)


def replies_of(run: Run, evaluation: Evaluation) -> Run:
    """Where the replies of an evaluation are."""
    return Run(run.eval_dir / evaluation.folder)


def facts_of(prepared: Prepared) -> dict[str, Any]:
    """What an `Evaluation` says beside its counts, known before the first request."""
    model, generation = prepared.model, prepared.asked.generation
    return {
        "model": model.name,
        "model_sha256": model.identity.revision if model.folder else None,
        "benchmark": prepared.benchmark.name,
        "temperature": generation.temperatures[0],
        "samples": generation.samples,
        "left_out": prepared.left_out,
        "duplicates": prepared.prompts.duplicates,
        "settings": generation.model_dump(mode="json", exclude={"temperatures", "samples", "logprobs", "seed"}),
        "verifiers": _versions(prepared.prompts.rows),
        "questions_sha256": _digest(prepared.prompts.rows),
        "folder": prepared.run.root.name,
        "role": model.role,
    }


def _measured(own: Run, facts: dict[str, Any]) -> Evaluation:
    """Verify, count. Questions and verifiers are said by the tables, so that it is true of the replies counted."""
    verify(own)
    questions = own.read("prompts", ["prompt_id", "gold", "gold_type", "verifier"]).rows(named=True)
    counts = counted(judged(own, facts["role"], samples=facts["samples"]))
    if counts.questions < len(questions):
        raise VerifyError(
            f"{len(questions) - counts.questions:,} of {len(questions):,} questions in {own.root} have no reply, for "
            f"an evaluation was not finished. Run builder eval --model {facts['model']} again; it asks only for those."
        )
    values = {one.name: getattr(counts, one.name) for one in fields(Counts)}
    found = {"verifiers": _versions(questions), "questions_sha256": _digest(questions)}
    return Evaluation(**facts | values | found)


def stored(run: Run, model: str, benchmark: str) -> list[Evaluation]:
    """Evaluations under `eval/` of a model on a benchmark, by their names, the newest first.

    Files of other programs and versions are left out. Raises TableError on one that cannot be read.
    """
    names = {one.name for one in fields(Evaluation)}
    found = []
    for path in sorted(run.eval_dir.glob("*.json"), key=lambda one: (-one.stat().st_mtime_ns, one.name)):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if set(values) == names:
                found.append(Evaluation(**values | {"at_k": tuple(AtK(**one) for one in values["at_k"])}))
        except (OSError, ValueError, TypeError) as error:
            raise TableError(
                f"{path} is no evaluation ({type(error).__name__}: {error}), so what is stored cannot be looked up. "
                "Move it out of eval/, or make it anew with builder eval."
            ) from error
    return [one for one in found if (one.model, one.benchmark) == (model, benchmark)]


@contextmanager
def served(prepared: Sequence[Prepared], endpoint: str | None) -> Iterator[str | None]:
    """Address of the one model of `prepared`: the given one, a server of this process for a folder that still has to
    be asked, else None. Raises ServeError where it cannot be served here.
    """
    model = prepared[0].model
    if endpoint is not None or model.folder is None or not any(one.missing for one in prepared):
        yield endpoint
        return
    from builder.local_server import running_server

    with running_server(model.folder, model_name=model.name) as url:
        yield url


def _versions(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    return {name: verifier_version(name) for name in sorted({row["verifier"] for row in rows})}


def _digest(rows: Sequence[dict[str, Any]]) -> str:
    """64 hex digits over questions, golds and verifiers, whatever their order."""
    decisive = sorted([str(row[name]) for name in ("prompt_id", "gold", "gold_type", "verifier")] for row in rows)
    return sha256_hex(canonical_json(decisive))
