"""pass@1 of a model on questions with golds, by the same generate and verify code that makes the data."""

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

from builder.config import Recipe, Teacher
from builder.errors import EndpointError, VerifyError
from builder.generate import generate
from builder.identity import canonical_json, sha256_hex
from builder.models import model_sha256
from builder.prompts import load_prompts, write_prompts
from builder.section import Endpoint, PromptSource
from builder.statistics import wilson_interval
from builder.store import Run, write_text
from builder.tally import Tally
from builder.verify import verify


@dataclass(frozen=True)
class Evaluation:
    """pass@1 with its 95% Wilson interval. `unscorable` replies count as not correct and are named apart."""

    model: str
    model_sha256: str | None
    questions: int
    replies: int
    correct: int
    unscorable: int
    pass_at_1: float
    low: float
    high: float
    mean_tokens: float
    cut: int
    temperature: float
    samples: int


def evaluate(
    run: Run,
    recipe: Recipe,
    model: str,
    *,
    label: str | None = None,
    questions: PromptSource | None = None,
    temperature: float = 1.0,
    samples: int = 1,
    endpoint: str | None = None,
    limit: int | None = None,
    progress: Callable[[Tally], None] | None = None,
) -> Evaluation:
    """Ask, verify, count; write `eval/<label>.json`. A folder is served here, any other name is asked at `endpoint`.

    Replies live in a run of their own below `eval/`, one for each set of settings, so a second call pays nothing. The
    interval treats replies as independent, which holds for one sample a question (Wilson 1927).
    """
    folder = Path(model)
    digest = model_sha256(folder) if folder.is_dir() else None
    name = label or folder.name if digest else label or model
    asked = Recipe(
        name=recipe.name,
        prompts=[questions] if questions else recipe.prompts,
        teacher=Teacher(model=name if digest else model, revision=digest, tokenizer=str(folder) if digest else None),
        generation=recipe.generation.model_copy(
            update={
                "temperatures": [temperature],
                "samples": samples,
                "logprobs": False,
                "system_prompt": recipe.student.system_prompt if recipe.student else None,
            }
        ),
    )
    prompts = load_prompts(asked, limit=limit)
    # Everything that can change a reply but their number: other settings are another evaluation, in a run of its own.
    settings = asked.decisive()
    del settings["generation"]["samples"]
    identity = sha256_hex(canonical_json(settings))[:8]
    own = Run(run.eval_dir / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}-{identity}")
    write_prompts(own, prompts)
    with _served(folder, name, endpoint) as url:
        pinned = asked.require_teacher().model_copy(update={"endpoints": [Endpoint(url=url)] if url else []})
        tally = generate(own, asked.model_copy(update={"teacher": pinned}), prompts, role="eval", progress=progress)
    if tally.failed or tally.set_aside:
        raise EndpointError(
            f"{tally.failed + tally.set_aside} of {tally.total} questions got no reply ({tally.last_error}). A score "
            "without them would be of another benchmark; rerun, the others are kept."
        )
    verify(own)
    found = _count(own, name, digest, len(prompts.rows), temperature, samples)
    write_text(json.dumps(asdict(found), indent=2) + "\n", run.eval_dir / f"{own.root.name}.json")
    return found


def _served(folder: Path, name: str, endpoint: str | None) -> AbstractContextManager[str | None]:
    """Address of the model: the given endpoint, a server of this process for a folder, else the environment's."""
    if endpoint is not None or not folder.is_dir():
        return nullcontext(endpoint)
    from builder.local_server import running_server

    return running_server(folder, model_name=name)


def _count(run: Run, name: str, digest: str | None, questions: int, temperature: float, samples: int) -> Evaluation:
    rows = (
        run.scan("responses")
        .join(run.scan("prompts").select("prompt_id", "verifier"), on="prompt_id")
        .join(
            run.scan("verdicts").select("response_id", "verifier", "verdict"),
            on=["response_id", "verifier"],
            how="left",
        )
        .filter(pl.col("sample_index") < samples)
        .select("verdict", "completion_tokens", "finish_reason")
        .collect()
    )
    scored = rows.filter(pl.col("verdict").is_not_null())
    if not len(scored):
        raise VerifyError(
            "None of the questions has a gold that a verifier here can read, so there is nothing to count. "
            "Give questions with gold and gold_type."
        )
    correct = int((scored["verdict"] == "correct").sum())
    low, high = wilson_interval(correct, len(scored))
    mean = rows["completion_tokens"].mean()
    return Evaluation(
        model=name,
        model_sha256=digest,
        questions=questions,
        replies=len(scored),
        correct=correct,
        unscorable=int(scored["verdict"].is_in(["unscorable", "timeout", "error"]).sum()),
        pass_at_1=correct / len(scored),
        low=low,
        high=high,
        mean_tokens=float(mean) if isinstance(mean, int | float) else 0.0,
        cut=int((rows["finish_reason"] == "length").sum()),
        temperature=temperature,
        samples=samples,
    )
