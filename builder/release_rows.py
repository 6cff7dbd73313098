"""Rows of a release, in its schemas: joins over the run's tables, ordered by id so that versions differ little."""

from collections.abc import Iterator

import polars as pl
import pyarrow as pa

from builder.config import Recipe, Stage
from builder.divergence import MIN_TOKENS
from builder.errors import ReleaseError
from builder.models import student_id
from builder.schema import CANDIDATE_ROLES, FEATURES, MARGINS, RELEASE_CANDIDATES, RELEASE_KINDS, SCORES
from builder.stages import stages_of
from builder.store import Run
from builder.student import student_messages
from builder.text import completion_text

_MARGIN = 0.1
_CHUNK_BYTES = 256_000_000


def stage_rows(run: Run, recipe: Recipe) -> Iterator[tuple[str, Stage, pa.Table]]:
    """Each stage with its rows, in training order."""
    builders = {"sft": _sft_rows, "grpo": _grpo_rows, "reward": _reward_rows}
    for name, stage in stages_of(run, recipe).items():
        chosen = run.scan("selection").filter(pl.col("stage") == name).select("grain_id", "position").collect()
        yield name, stage, builders[stage.kind](run, recipe, chosen)


def _teacher_sentences(run: Run, recipe: Recipe, chosen: pl.DataFrame) -> pl.LazyFrame:
    """Teacher sentences of the chosen replies at the recipe's margin: from the scores, or counted anew."""
    margin = float(recipe.selection.params.get("teacher_margin", _MARGIN))
    found = _scores(run, recipe).filter(pl.col("status") == "ok")
    for index, known in enumerate(MARGINS):
        if abs(known - margin) < 1e-7:
            count = pl.col("teacher_counts").list.get(index, null_on_oob=True)
            return found.select("response_id", count.alias("teacher_sentences"))
    lists = ["p_teacher", "p_student", "teacher_tokens", "student_tokens"]
    delta = pl.col("p_teacher").cast(pl.Float64) - pl.col("p_student").cast(pl.Float64)
    counted = pl.min_horizontal("teacher_tokens", "student_tokens") >= MIN_TOKENS
    return (
        run.scan("sentences")
        .join(found.select("response_id", "student_id"), on=["response_id", "student_id"], how="semi")
        .join(chosen.lazy().select(response_id="grain_id"), on="response_id", how="semi")
        .select("response_id", *lists)
        .explode(lists)
        .group_by("response_id")
        .agg((counted & (delta > margin)).sum().cast(pl.Int32).alias("teacher_sentences"))
    )


def score_remarks(run: Run, recipe: Recipe) -> dict[str, int]:
    """What is unusual about scores that count, and of how many replies."""
    said = _scores(run, recipe).filter((pl.col("status") == "ok") & pl.col("status_detail").is_not_null())
    return dict(said.group_by("status_detail").len().sort("status_detail").collect().iter_rows())


def _scores(run: Run, recipe: Recipe) -> pl.LazyFrame:
    """Scores by the recipe's student; no rows where it names none."""
    identity = student_id(recipe.student) if recipe.student else ""
    return run.scan("scores").filter(pl.col("student_id") == identity)


def _prompts(run: Run, recipe: Recipe) -> pl.LazyFrame:
    """Prompts with their messages as the student sees them, and their first source."""
    frame = run.read("prompts")
    messages = [student_messages(recipe.student, row) for row in frame["messages"].to_list()]
    first = pl.col("sources").list.first()
    return frame.with_columns(
        pl.Series("prompt", messages, dtype=frame.schema["messages"]),
        first.struct.field("source").alias("source"),
        first.struct.field("license").alias("source_license"),
    ).lazy()


def _sft_rows(run: Run, recipe: Recipe, chosen: pl.DataFrame) -> pa.Table:
    replies = run.scan("responses").filter(pl.col("role").is_in(CANDIDATE_ROLES))
    alike = ["prompt_id", "temperature", "role"]
    candidates = replies.group_by(alike).len("n_candidates")
    rollouts = run.scan("responses").filter(pl.col("role") == "student")
    writers = rollouts.select(prefix_response_id="response_id", student_revision="model_revision")
    frame = (
        chosen.lazy()
        .rename({"grain_id": "response_id"})
        .join(replies, on="response_id", how="left")
        .join(candidates, on=alike, how="left")
        .join(writers, on="prefix_response_id", how="left")
        .join(_prompts(run, recipe), on="prompt_id", how="left")
        .join(_scores(run, recipe), on="response_id", how="left")
        .join(_teacher_sentences(run, recipe, chosen), on="response_id", how="left")
        .with_columns(
            pl.when(pl.col("role") == "mixed").then(pl.lit("mixed")).otherwise(pl.lit("teacher")).alias("policy"),
            _label("model").alias("teacher"),
            pl.col("model_revision").alias("teacher_revision"),
        )
        .sort("response_id")
        .collect()
    )
    completions = [
        [{"role": "assistant", "content": completion_text(reasoning, answer)}]
        for reasoning, answer in frame.select("reasoning", "answer").iter_rows()
    ]
    return _as_kind("sft", frame.with_columns(pl.Series("completion", completions, dtype=_MESSAGES)))


def _grpo_rows(run: Run, recipe: Recipe, chosen: pl.DataFrame) -> pa.Table:
    frame = (
        chosen.lazy()
        .rename({"grain_id": "prompt_id"})
        .join(_prompts(run, recipe), on="prompt_id", how="left")
        .with_columns(pl.col("gold").alias("solution"))
        .sort("prompt_id")
        .collect()
    )
    return _as_kind("grpo", frame)


def _reward_rows(run: Run, recipe: Recipe, chosen: pl.DataFrame) -> pa.Table:
    """Preference pairs; a pair's id is chosen id and rejected id with a colon between."""
    parts = pl.col("grain_id").str.split_exact(":", 1).struct.rename_fields(["chosen_id", "rejected_id"])
    pairs = chosen.lazy().with_columns(parts.alias("ids")).unnest("ids")
    frame = (
        pairs.join(run.scan("pairs"), on=["chosen_id", "rejected_id"], how="left")
        .join(_prompts(run, recipe), on="prompt_id", how="left")
        .sort("grain_id")
        .collect()
    )
    wanted = pl.concat([frame["chosen_id"], frame["rejected_id"]]).unique().to_frame("response_id").lazy()
    replies = (
        run.scan("responses").select("response_id", "reasoning", "answer").join(wanted, on="response_id", how="semi")
    )
    texts = {identity: completion_text(*parts) for identity, *parts in replies.collect().iter_rows()}
    for column in ("chosen", "rejected"):
        messages = [
            [{"role": "assistant", "content": texts[identity]}] if identity in texts else None
            for identity in frame[f"{column}_id"]
        ]
        frame = frame.with_columns(pl.Series(column, messages, dtype=_MESSAGES))
    return _as_kind("reward", frame)


def candidate_rows(run: Run, recipe: Recipe) -> pa.Table:
    """Every teacher reply with its scores, features, verdict and the rules it breaks: what SQL experiments read."""
    broken = run.scan("rejections").group_by("response_id").agg(pl.col("rule_name").sort().alias("rejected_by"))
    features = run.scan("features").select(FEATURES.schema.names)
    scores = _scores(run, recipe).select(SCORES.schema.names).drop("sentence_count", "status_detail")
    frame = (
        run.scan("responses")
        .filter(pl.col("role").is_in(CANDIDATE_ROLES))
        .join(_prompts(run, recipe).drop("language"), on="prompt_id", how="inner")
        .join(scores.rename({"status": "score_status"}), on="response_id", how="left")
        .join(deciding_verdicts(run), on="response_id", how="left")
        .join(features, on="response_id", how="left")
        .join(broken, on="response_id", how="left")
        .with_columns(pl.col("rejected_by").fill_null([]), _label("model"))
        .sort("response_id")
        .collect()
    )
    return _cast(frame, RELEASE_CANDIDATES)


def deciding_verdicts(run: Run) -> pl.LazyFrame:
    """The verdict that decides each reply, as in `stg_verdicts`: that of the prompt's verifier, else the strictest."""
    prompts = run.scan("prompts").select("prompt_id", named="verifier")
    replies = run.scan("responses").select("response_id", "prompt_id").join(prompts, on="prompt_id", how="left")
    strictness = pl.Enum(["wrong", "correct", "unscorable", "timeout", "error"])
    return (
        run.scan("verdicts")
        .join(replies, on="response_id", how="left")
        .sort(pl.col("verifier").ne_missing(pl.col("named")), pl.col("verdict").cast(strictness), "verifier")
        .unique("response_id", keep="first", maintain_order=True)
        .select("response_id", "verdict", "extracted")
    )


def unplaced(label: str) -> str:
    """A model's label without the folders of the machine that serves it."""
    return label.rstrip("/").rpartition("/")[2] if label.startswith(("/", "~")) else label


def _label(column: str) -> pl.Expr:
    label = pl.col(column)
    last = label.str.strip_chars_end("/").str.split("/").list.last()
    return pl.when(label.str.contains("^[/~]")).then(last).otherwise(label).alias(column)


_MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))


def _as_kind(kind: str, frame: pl.DataFrame) -> pa.Table:
    return _cast(frame, RELEASE_KINDS[kind])


def _cast(frame: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    """The frame in a release schema; ReleaseError names a column that has nulls where it may not."""
    table: pa.Table = frame.select(schema.names).to_arrow()
    for field in schema:
        if not field.nullable and table[field.name].null_count:
            raise ReleaseError(
                f"Column {field.name!r} is null in {table[field.name].null_count} rows. A selected row lacks its "
                "prompt or reply; rerun builder select on complete tables."
            )
    return fit(table, schema)


def fit(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table in a schema, in chunks for Arrow's 32-bit offsets: one array holds at most 2 GB of text."""
    step = max(1, int(_CHUNK_BYTES * table.num_rows / max(1, table.nbytes)))
    chunks = [table.slice(start, step) for start in range(0, table.num_rows, step)]
    fitted = [
        pa.Table.from_arrays(
            [chunk[name].combine_chunks().cast(schema.field(name).type) for name in schema.names], schema=schema
        )
        for chunk in chunks
    ]
    return pa.concat_tables(fitted) if fitted else schema.empty_table()
