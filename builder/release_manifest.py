"""What a release says of itself: `manifest.json`, counted from the tables of the run, never estimated."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder import journal, quotas
from builder.config import MixedPolicy, Recipe
from builder.decontaminate import benchmarks_id
from builder.identity import canonical_json, sha256_hex
from builder.licenses import license_conflicts
from builder.models import resolved_revision
from builder.release_rows import Config, unplaced
from builder.release_scores import score_remarks
from builder.release_statistics import statistics
from builder.rowset import hash_sum, rowset_hex
from builder.schema import PAID_ROLES, TABLES
from builder.selection import SelectionResult
from builder.stages import is_mixed, needs_replies
from builder.store import Run, check_schema

FORMAT: Final = 1
_PACKAGES: Final = (
    "tempered", "datasets", "duckdb", "huggingface-hub", "math-verify", "msgspec", "numpy", "openai", "polars",
    "pyarrow", "pydantic", "torch", "transformers",
)  # fmt: skip


def manifest_of(
    run: Run,
    kept: Run,
    recipe: Recipe,
    selected: SelectionResult,
    sql: Mapping[str, str],
    withdrawn: Sequence[str],
) -> dict[str, Any]:
    """What a release says but its version and what its files hold. `kept` is the run without what is withdrawn."""
    teacher = recipe.require_teacher() if needs_replies(recipe) else recipe.teacher
    student = recipe.student
    hashes = {path: sha256_hex(text) for path, text in sorted(sql.items())}
    mixed = is_mixed(run, recipe)
    sources = prompt_sources(kept)
    asked = None
    if teacher is not None:
        asked = {
            "model": unplaced(teacher.model),
            "revision": teacher.revision,
            "tokenizer": unplaced(recipe.public_tokenizer() or teacher.model),
            "license": teacher.license,
        }
    rewriter = rewrite_of(recipe, selected)
    return {
        "format": FORMAT,
        "build_id": build_id(run, recipe, hashes, withdrawn),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe_name": recipe.name,
        "recipe_hash": recipe.hash(),
        "seed": recipe.generation.seed,
        "license": recipe.release.license,
        "license_conflicts": license_conflicts(recipe.release.license, sources, asked, rewriter),
        "repo": recipe.release.repo,
        "withdrawn": list(withdrawn),
        "sql": hashes,
        "prompts": sources,
        "teacher": asked,
        "student": None
        if student is None
        else {
            "model": unplaced(recipe.public_student() or student.model),
            "revision": resolved_revision(student.model, student.revision),
            "system_prompt": student.system_prompt,
        },
        "sampling": recipe.generation.model_dump(mode="json") if teacher else None,
        "selection": {
            "selection_id": selected.selection_id,
            "order": recipe.selection.order,
            "rules": list(recipe.selection.rules),
            "selector": recipe.selection.selector,
            "params": dict(recipe.selection.params),
            "keep": recipe.selection.keep,
        },
        "funnel": [
            {"rule": row.rule_name, "breaks": row.breaks, "breaks_alone": row.breaks_alone, "tokens": row.tokens}
            for row in selected.funnel
        ],
        "quotas": quotas.released(kept, selected.quotas),
        "thinking": [asdict(one) for one in selected.thinking],
        "rewrite": rewriter,
        "reviews": reviews(kept),
        "rollout": rollout(run) if mixed else None,
        "mixed_policy": mixed_policy(kept, recipe.mixed_policy) if mixed else None,
        "score_remarks": score_remarks(kept, recipe),
        "statistics": statistics(kept, recipe),
        "calls": calls(run),
        "packages": packages(),
    }


def held_out(share: float, configs: Sequence[Config]) -> dict[str, Any] | None:
    """What is not trained on: prompts, and rows by config; `configs` are those of split `validation`. None for none."""
    if not configs:
        return None
    prompts = frozenset().union(*(config.held_out for config in configs))
    return {"share": share, "prompts": len(prompts), "rows": {config.name: config.rows for config in configs}}


def build_id(run: Run, recipe: Recipe, sql_hashes: Mapping[str, str], withdrawn: Sequence[str] = ()) -> str:
    """64 hex digits of what decides the output: rows of the input tables, the recipe, the SQL, what is withdrawn."""
    names = ["prompts", "responses", "scores", "sentences", "verdicts", "features", "rollouts", "pairs"]
    names += ["rewrites"] if recipe.rewrite else []
    names += ["reviews"] if run.rows("reviews") else []  # likewise: without any, build ids of before stay
    names += ["logprobs"] if recipe.release.logprobs else []
    decides: dict[str, Any] = {
        "tables": {name: _table_hash(run, name) for name in names},
        "recipe": recipe.decisive(),
        "sql": dict(sql_hashes),
        "withdrawn": list(withdrawn),
    }
    if recipe.decontamination is not None:
        decides["benchmarks"] = benchmarks_id(recipe.require_benchmarks())
    return sha256_hex(canonical_json(decides))


def _table_hash(run: Run, name: str) -> str:
    """`rowset_hash` of a table without accounting, part by part: a run's texts need not fit in memory.

    Without a judge's replies, which decide by its verdicts alone: on which known answers it was tried hangs on shards.
    """
    total = 0
    for part in run.parts(name):
        check_schema(TABLES[name], part)
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(batch_size=1024, columns=run.content_columns(name)):
                total += hash_sum(
                    batch.filter(pc.not_equal(batch["role"], pa.scalar("judge"))) if name == "responses" else batch
                )
    return rowset_hex(total)


def rollout(run: Run) -> dict[str, str | None]:
    """The checkpoint that began the mixed rows: its weights, and what they were trained from and on."""
    return run.read("rollouts", ["base", "dataset", "stage", "weights_sha256"]).row(0, named=True)


def rewrite_of(recipe: Recipe, selected: SelectionResult) -> dict[str, Any] | None:
    """Who rewrote the replies, how, and what the verdicts said; counted before anything was withdrawn."""
    section = recipe.rewrite
    if section is None or selected.rewrites is None:
        return None
    named = section.model_dump(mode="json", include={"revision", "license", "temperature", "samples", "max_tokens"})
    return {"model": unplaced(section.model), **named, **asdict(selected.rewrites)}


def reviews(run: Run) -> dict[str, int] | None:
    """What people decided: rows that are released and were reviewed, decisions in all, and people who are named."""
    rows = run.read("reviews", ["response_id", "decision", "reviewer"])
    if rows.is_empty():
        return None
    trained = run.scan("selection").filter(pl.col("kind") == "sft").select(response_id="grain_id").unique().collect()
    return {
        "released": trained.height,
        "released_reviewed": trained.join(rows, on="response_id", how="semi").height,
        "kept": int((rows["decision"] == "keep").sum()),
        "dropped": int((rows["decision"] == "drop").sum()),
        "reviewers": rows["reviewer"].drop_nulls().n_unique(),
    }


def mixed_policy(run: Run, policy: MixedPolicy | None) -> dict[str, Any] | None:
    """How the mixed rows were made and how many there are, counted from the tables."""
    if policy is None:
        return None
    rollouts = run.read("rollouts", ["hit_cap", "outcome", "continuation_id"])
    rows = run.scan("selection").filter(pl.col("stage") == policy.stage).select(response_id="grain_id")
    roles = rows.join(run.scan("responses").select("response_id", "role"), on="response_id").collect()["role"]
    settings = policy.model_dump(mode="json", include={"keep", "length_cap", "cut", "temperature", "off_policy_ratio"})
    return {
        "stage": policy.stage,
        **settings,
        "rollouts": rollouts.height,
        "hit_cap": int(rollouts["hit_cap"].sum()),
        "cut_rollouts": int((rollouts["outcome"] == "cut").sum()),
        "continued": rollouts.height - rollouts["continuation_id"].null_count(),
        "mixed_rows": int((roles == "mixed").sum()),
        "off_policy_rows": int((roles != "mixed").sum()),
    }


def prompt_sources(run: Run) -> list[dict[str, Any]]:
    """Sources of the prompts with the number of prompts that each one gave."""
    frame = run.scan("prompts").select(pl.col("sources").explode()).unnest("sources")
    grouped = frame.group_by("source", "revision", "license").len("rows").sort("source", "revision", "license")
    return grouped.collect().to_dicts()


def calls(run: Run) -> dict[str, float | None]:
    """What was asked and paid, counted from the journal and the replies."""
    attempts = journal.counts(run.journal_dir)
    paid = pl.col("role").is_in(PAID_ROLES)
    total = run.scan("responses").select(
        paid.sum().alias("replies"),
        (pl.col("role") == "student").sum().alias("rollouts"),
        *(_sum_of_known(name, paid) for name in ("prompt_tokens", "completion_tokens")),
        pl.col("cost_usd").sum().alias("cost_usd"),
        pl.col("cost_usd").is_null().all().alias("unpriced"),
    )
    row = total.collect().row(0, named=True)
    return {
        "attempts": sum(attempts.values()),
        "maybe_billed": attempts.get("maybe_billed", 0),
        "replies": row["replies"],
        "rollouts": row["rollouts"],
        "prompt_tokens": row["prompt_tokens"],
        "completion_tokens": row["completion_tokens"],
        "cost_usd": None if row["unpriced"] else row["cost_usd"],
    }


def _sum_of_known(name: str, where: pl.Expr) -> pl.Expr:
    """The sum, null where no row says anything."""
    known = pl.col(name).filter(where & pl.col(name).is_not_null())
    return pl.when(known.len() > 0).then(known.sum()).alias(name)


def packages() -> dict[str, str]:
    """Versions of the packages that a rebuild depends on, those installed here."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
