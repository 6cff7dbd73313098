"""What a release holds in numbers, counted from the tables of its run. Counts and quantiles only, no text of a row."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import polars as pl

from builder.charts import shared_bins
from builder.config import Benchmark, Recipe
from builder.decontaminate import benchmarks_id
from builder.dedup import FLOOR
from builder.models import student_id
from builder.prompts import open_source
from builder.release_rows import deciding_verdicts
from builder.release_scores import teacher_sentences
from builder.rules import catalogue, load_sql
from builder.schema import CANDIDATE_ROLES, MARGINS, VERDICTS
from builder.stages import stages_of
from builder.store import Run

CANDIDATES: Final = "candidates"
QUANTILES: Final = {"p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}
MEASURES: Final = ("student_tokens", "completion_tokens", "teacher_sentences", "sentence_count", "mean_delta")
_DOMAINS: Final = 20
"""Most domains that are named for one config; the rows of further ones are what is left."""
_CONTAMINATED: Final = "benchmark_contaminated"


def statistics(run: Run, recipe: Recipe) -> dict[str, Any]:
    """Numbers of every config at every temperature, of verdicts, pass rates, decontamination and duplicates.

    JSON-able, and the same for the same tables. Tokens are the student's or the endpoint's count, `mean_delta` is in
    probability, quantiles are observed values: the least one that at least that share of the rows does not exceed.
    Raises SourceError where a benchmark that prompts were compared with cannot be read any more.
    """
    rows = _rows(run, recipe)
    released = rows.filter(pl.col("config") != CANDIDATES)["response_id"].drop_nulls().n_unique()
    return {
        "replies": {CANDIDATES: (rows["config"] == CANDIDATES).sum(), "released": released},
        "configs": [_numbers(config, temperature, part) for config, temperature, part in _parts(rows)],
        "verdicts": _verdicts(run, rows),
        "pass_rate": _pass_rate(rows),
        "decontamination": _decontamination(run, recipe, rows),
        "duplicates": _duplicates(run, rows),
        "histograms": _histograms(rows),
    }


def _rows(run: Run, recipe: Recipe) -> pl.DataFrame:
    """One line a released row or candidate, numbers only. `place` orders configs as the schedule does."""
    selection = run.scan("selection").select("stage", "kind", "grain_id")
    chosen = selection.filter(pl.col("kind") == "sft").select("grain_id").unique().collect()
    replies = _replies(run, recipe, chosen)
    domains = run.scan("prompts").select("prompt_id", "domain", is_open=pl.col("gold").is_null())
    pairs = run.scan("pairs").select("prompt_id", grain_id=pl.concat_str("chosen_id", "rejected_id", separator=":"))
    found = []
    for place, (name, stage) in enumerate(stages_of(run, recipe).items()):
        grains = selection.filter(pl.col("stage") == name).select("grain_id")
        if stage.kind == "sft":
            rows = grains.rename({"grain_id": "response_id"}).join(replies, on="response_id", how="left")
        elif stage.kind == "grpo":
            rows = grains.rename({"grain_id": "prompt_id"}).join(domains, on="prompt_id", how="left")
        else:
            rows = grains.join(pairs, on="grain_id", how="left").join(domains, on="prompt_id", how="left")
        found.append(rows.with_columns(place=pl.lit(place), config=pl.lit(name), kind=pl.lit(stage.kind)))
    candidates = replies.with_columns(place=pl.lit(len(found)), config=pl.lit(CANDIDATES), kind=pl.lit(CANDIDATES))
    if _margin(recipe) not in MARGINS:  # then only the sentences of released rows were counted
        candidates = candidates.with_columns(teacher_sentences=pl.lit(None, pl.Int32))
    return pl.concat([*found, candidates], how="diagonal_relaxed").collect()


def _replies(run: Run, recipe: Recipe, chosen: pl.DataFrame) -> pl.LazyFrame:
    """Every candidate with what is measured of it."""
    identity = student_id(recipe.student) if recipe.student else ""
    measured = ["sentence_count", "short_sentences", "mean_delta", "student_tokens"]
    scores = run.scan("scores").filter(pl.col("student_id") == identity).select("response_id", *measured)
    return (
        run.scan("responses")
        .filter(pl.col("role").is_in(CANDIDATE_ROLES))
        .select("response_id", "prompt_id", "role", "temperature", "completion_tokens")
        .join(run.scan("prompts").select("prompt_id", "domain"), on="prompt_id", how="left")
        .join(scores, on="response_id", how="left")
        .join(teacher_sentences(run, recipe, chosen), on="response_id", how="left")
        .join(deciding_verdicts(run).select("response_id", "verdict"), on="response_id", how="left")
        .join(run.scan("features").select("response_id", "text_hash"), on="response_id", how="left")
        .with_columns(pl.when(pl.col("mean_delta").is_finite()).then(pl.col("mean_delta")))
    )


def _margin(recipe: Recipe) -> float:
    return round(float(recipe.selection.params.get("teacher_margin", 0.1)), 6)


def _parts(rows: pl.DataFrame) -> Iterator[tuple[str, float | None, pl.DataFrame]]:
    """Rows of each config and temperature, in training order, candidates last."""
    parts = rows.partition_by("place", "config", "temperature", as_dict=True)
    for place, config, temperature in sorted(parts, key=lambda key: (key[0], key[2] is not None, key[2] or 0.0)):
        yield config, temperature, parts[place, config, temperature]


def _numbers(config: str, temperature: float | None, rows: pl.DataFrame) -> dict[str, Any]:
    domains = rows.group_by("domain").len("rows").sort("rows", "domain", descending=[True, False])
    return {
        "config": config,
        "kind": rows["kind"][0],
        "temperature": temperature,
        "rows": rows.height,
        "prompts": rows["prompt_id"].n_unique(),
        "domains": domains.head(_DOMAINS).select("domain", "rows").to_dicts(),
        **{name: _spread(rows[name]) if name in rows.columns else None for name in MEASURES},
        **({"without_gold": int(rows["is_open"].sum())} if rows["kind"][0] == "grpo" else {}),
    }


def _spread(column: pl.Series) -> dict[str, float | int] | None:
    """Quantiles of what is known, and how much is not; None where nothing is."""
    values = column.drop_nulls().to_numpy()
    if not len(values):
        return None
    points = np.quantile(values, list(QUANTILES.values()), method="inverted_cdf")
    named = {**dict(zip(QUANTILES, points, strict=True)), "max": values.max()}
    return {
        "known": len(values),
        "missing": len(column) - len(values),
        **{name: int(value) if column.dtype.is_integer() else round(float(value), 6) for name, value in named.items()},
    }


def _verdicts(run: Run, rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Verdicts by config and verifier, null standing for the one that decides each reply."""
    replies = rows.lazy().select("place", "config", "response_id", "verdict").drop_nulls("response_id")
    every = run.scan("verdicts").select("response_id", "verifier", given="verdict")
    named = replies.drop("verdict").join(every, on="response_id").rename({"given": "verdict"})
    decided = replies.with_columns(verifier=pl.lit(None, pl.String)).select(named.collect_schema().names())
    counts = [(pl.col("verdict") == name).sum().alias(name) for name in VERDICTS]
    totals = dict(replies.group_by("config").len().collect().iter_rows())
    found = pl.concat([decided, named]).group_by("place", "config", "verifier").agg(counts)
    lines = found.sort("place", "verifier", nulls_last=False).drop("place").collect().to_dicts()
    return [line | {"unverified": totals[line["config"]] - sum(line[name] for name in VERDICTS)} for line in lines]


def _pass_rate(rows: pl.DataFrame) -> dict[str, Any] | None:
    """Shares of correct among the teacher's replies that are correct or wrong, one a prompt; None where none is."""
    judged = rows.filter(
        (pl.col("config") == CANDIDATES) & (pl.col("role") == "teacher") & pl.col("verdict").is_in(["correct", "wrong"])
    )
    shares = (
        judged.group_by("prompt_id").agg((pl.col("verdict") == "correct").mean().alias("share"))["share"].to_numpy()
    )
    if not len(shares):
        return None
    # a share of 0.3 computed as 0.30000000000000004 / 0.1 must not fall into the bin below
    counts = np.bincount(np.minimum((shares * 10 + 1e-9).astype(int), 9), minlength=10)
    return {
        "prompts": len(shares),
        "none_correct": int((shares == 0).sum()),
        "all_correct": int((shares == 1).sum()),
        "edges": [round(0.1 * step, 1) for step in range(11)],
        "counts": counts.tolist(),
    }


def _decontamination(run: Run, recipe: Recipe, rows: pl.DataFrame) -> dict[str, Any] | None:
    """Benchmarks that the prompts were compared with, and what was found by the rule's parameters; None for none."""
    if recipe.decontamination is None:
        return None
    benchmarks = recipe.require_benchmarks()
    compared = run.scan("contaminations").filter(pl.col("compared_with") == benchmarks_id(benchmarks))
    prompts = compared.select(pl.len()).collect().item()
    words, share = (_parameter(recipe, name) for name in ("ngram_words", "min_row_share"))
    match = pl.col("matches").struct
    is_close = (match.field("shared_words") >= words) & (match.field("row_share") >= share)
    hit = (
        compared.select("prompt_id", "matches")
        .explode("matches")  # no match: null, which passes no filter
        .filter(match.field("is_whole") | is_close)
        .select("prompt_id", benchmark=match.field("benchmark"))
        .unique()
        .collect()
    )
    prompts_hit = dict(hit.group_by("benchmark").len().iter_rows())
    of_hit = rows.filter(pl.col("prompt_id").is_in(hit["prompt_id"].unique().implode()))
    return {
        "is_rule": _CONTAMINATED in recipe.selection.rules,
        "ngram_words": int(words),
        "min_row_share": share,
        "prompts_compared": prompts,
        "prompts_hit": hit["prompt_id"].n_unique(),
        "rows_hit": {
            config: (of_hit["config"] == config).sum() for config in rows["config"].unique(maintain_order=True)
        },
        "benchmarks": [
            {
                "name": name,
                "source": recipe.decisive()["decontamination"]["benchmarks"][name]["source"],
                **_revision_and_rows(benchmark, is_read=prompts > 0),
                "prompts_hit": prompts_hit.get(name, 0),
            }
            for name, benchmark in benchmarks.items()
        ],
    }


def _parameter(recipe: Recipe, name: str) -> float:
    declared = load_sql("rules", catalogue("rules")[_CONTAMINATED]).parameters
    default = next(one.default for one in declared if one.name == name)
    return float(recipe.selection.params.get(name, default or 0))


def _revision_and_rows(benchmark: Benchmark, *, is_read: bool) -> dict[str, Any]:
    if not is_read:  # no prompt was compared with it
        return {"revision": benchmark.revision, "rows": None}
    revision, rows = open_source(benchmark)
    return {"revision": revision, "rows": sum(1 for _ in rows)}


def _duplicates(run: Run, rows: pl.DataFrame) -> dict[str, Any]:
    """Copies among candidates and among released rows, word for word, and near ones where they were looked for."""
    texts = rows.filter(pl.col("text_hash").is_not_null()).unique(["config", "response_id"])
    released = texts.filter(pl.col("config") != CANDIDATES).unique("response_id")["text_hash"]
    candidates = texts.filter(pl.col("config") == CANDIDATES)["text_hash"]
    near = run.scan("duplicates").select((pl.col("earlier_ids").list.len() > 0).alias("alike")).collect()["alike"]
    return {
        "same_text": {
            CANDIDATES: len(candidates) - candidates.n_unique(),
            "released": len(released) - released.n_unique(),
        },
        "near": {"compared": len(near), "alike": int(near.sum()), "floor": FLOOR} if len(near) else None,
    }


def _histograms(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Lengths and shares of teacher sentences by config and temperature, in bins that all share."""
    counted = pl.col("sentence_count") - pl.col("short_sentences")
    share = pl.when(counted > 0).then(pl.col("teacher_sentences") / counted)
    rows = rows.with_columns(teacher_share=share)
    length = "student_tokens" if rows["student_tokens"].count() else "completion_tokens"
    lengths = rows[length].drop_nulls().to_numpy()
    bins = {
        length: shared_bins(lengths, whole=True) if len(lengths) else [],
        "teacher_share": [round(0.05 * step, 2) for step in range(21)],
    }
    found = []
    for quantity, edges in bins.items():
        series = [
            {
                "config": config,
                "temperature": temperature,
                "counts": np.histogram(part[quantity].drop_nulls().to_numpy(), edges)[0].tolist(),
            }
            for config, temperature, part in _parts(rows)
            if part[quantity].count()
        ]
        if series:
            found.append({"quantity": quantity, "edges": edges, "series": series})
    return found
