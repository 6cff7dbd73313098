"""Rows of a release, in its schemas: joins over the run's tables, ordered so that versions differ little."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa

from builder.config import Recipe, Stage, Student
from builder.console import Progress
from builder.errors import ReleaseError
from builder.gather import Gathered
from builder.release_held_out import HELD_OUT, TRAIN, sides
from builder.release_scores import scores_of, teacher_sentences
from builder.schema import CANDIDATE_ROLES, FEATURES, RELEASE_CANDIDATES, RELEASE_KINDS, SCORES
from builder.stages import stages_of
from builder.store import Run
from builder.text import THINK_CLOSE, THINK_OPEN
from builder.thinking import answers_only

_CHUNK_BYTES = 256_000_000
_SLICE = 50_000
_KEYS = {"sft": "response_id", "grpo": "prompt_id", "reward": None}
Before = Callable[[str, str], Sequence[str]]
"""Ids of the version before: by config and by the column that holds them, in the order of its files."""


@dataclass(frozen=True)
class Config:
    """One config of a release. `rows` is known at once; `tables` are these rows in order, some at a time.

    `stage` is None for candidates and logprobs; `tokens` are student tokens, None where some row has none; `held_out`
    are the prompts of split `validation`, which follows the split `train` of its config.
    """

    name: str
    schema: pa.Schema
    rows: int
    tables: Iterator[pa.Table]
    stage: Stage | None = None
    tokens: int | None = None
    split: str = TRAIN
    held_out: frozenset[str] = frozenset()


def configs(
    run: Run, recipe: Recipe, before: Before, folder: Path, progress: Progress = lambda *_: None
) -> Iterator[Config]:
    """Configs of the stages in training order, a split at a time, then `candidates` where there are any, then
    `logprobs` where asked for.

    Rows that the version before holds stay in its order and new ones follow by id, so that a file grows at its end.
    Only what is not text is in memory at once; texts are gathered by way of `folder`. To be read one after the other.
    """
    progress("join rows", 0, None)
    bare = answers_only(run, recipe)
    staged = [
        (name, split, stage, _marked(index, bare.get(name, [])))
        for name, split, stage, index in _staged(run, recipe, before)
    ]
    candidates = _in_order(_candidate_index(run, recipe), "response_id", before("candidates", "response_id"))
    wanted = {"candidates": candidates["response_id"]}
    for name, split, stage, index in staged:
        if stage.kind == "sft":
            wanted[f"{name}/{split}"] = index["response_id"]
        elif stage.kind == "reward":
            wanted |= {f"{name}/{split}:{which}": index[f"{which}_id"] for which in ("chosen", "rejected")}
    columns = ["prompt_id", "reasoning", "answer"]
    texts = Gathered(run, "responses", columns, wanted, folder, lambda *far: progress("gather texts", *far))
    prompts = run.read("prompts", ["prompt_id", "messages"]).rename({"messages": "prompt"})
    for name, split, stage, index in staged:
        schema = RELEASE_KINDS[stage.kind]
        rows_of = {"sft": _sft_rows, "grpo": _grpo_rows, "reward": _reward_rows}[stage.kind]
        rows = rows_of(f"{name}/{split}", index, texts)
        tables = (_cast(_with_prompts(part, prompts, recipe.student), schema) for part in rows)
        tokens = index["student_tokens"] if "student_tokens" in index.columns else None
        total = int(tokens.sum()) if tokens is not None and not tokens.has_nulls() else None
        held = frozenset(index["prompt_id"]) if split == HELD_OUT else frozenset()
        yield Config(name, schema, index.height, tables, stage, total, split, held)
    if candidates.height:  # none for prompts alone
        rows = _beside(candidates, texts.of("candidates"))
        tables = (_cast(_with_prompts(part, prompts, None), RELEASE_CANDIDATES) for part in rows)
        yield Config("candidates", RELEASE_CANDIDATES, candidates.height, tables)
    if recipe.release.logprobs:
        yield _logprobs(run, before, folder, lambda *far: progress("gather logprobs", *far))


def _staged(run: Run, recipe: Recipe, before: Before) -> Iterator[tuple[str, str, Stage, pl.DataFrame]]:
    """Each stage and split, and its rows without texts."""
    builders = {"sft": _sft_index, "grpo": _grpo_index, "reward": _reward_index}
    for name, stage in stages_of(run, recipe).items():
        chosen = run.scan("selection").filter(pl.col("stage") == name).select("grain_id", "position").collect()
        index = builders[stage.kind](run, recipe, chosen)
        key = _KEYS[stage.kind]
        ordered = index.sort("grain_id") if key is None else _in_order(index, key, before(name, key))
        for split, rows in sides(name, ordered, recipe.release.held_out, recipe.generation.seed).items():
            yield name, split, stage, rows


def _marked(index: pl.DataFrame, bare: Sequence[str]) -> pl.DataFrame:
    """The index with `is_bare` for replies released as their answer alone: how many student tokens that is, no score
    tells."""
    if not bare:
        return index
    is_bare = pl.col("response_id").is_in(list(bare))
    return index.with_columns(is_bare=is_bare, student_tokens=pl.when(~is_bare).then("student_tokens"))


def _in_order(index: pl.DataFrame, key: str, before: Sequence[str]) -> pl.DataFrame:
    known = pl.DataFrame({key: before, "_before": range(len(before))}, schema={key: pl.String, "_before": pl.Int64})
    places = index.select(key).with_row_index("_place").join(known.unique(key, keep="first"), on=key, how="left")
    return index[places.sort("_before", key, nulls_last=True)["_place"]]  # sorting whole rows takes a copy more


def _beside(index: pl.DataFrame, texts: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The index in chunks, each with its texts."""
    start = 0
    for part in texts:
        yield index.slice(start, part.height).hstack(part.select("reasoning", "answer"))
        start += part.height


def _with_prompts(rows: pl.DataFrame, prompts: pl.DataFrame, student: Student | None) -> pl.DataFrame:
    """With the prompt's messages as this student sees them (`builder.student.student_messages`); its own for None."""
    joined = rows.join(prompts, on="prompt_id", how="left", maintain_order="left")
    if student is None or not student.system_prompt:
        return joined
    system = pl.struct(role=pl.lit("system"), content=pl.lit(student.system_prompt))
    has_own = pl.col("prompt").list.first().struct.field("role") == "system"
    with_system = pl.concat_list(pl.concat_list(system), "prompt")
    return joined.with_columns(
        prompt=pl.when(has_own | pl.col("prompt").is_null()).then("prompt").otherwise(with_system)
    )


def _completion(reasoning: str = "reasoning", answer: str = "answer") -> pl.Expr:
    """One assistant message with `builder.text.completion_text`."""
    said = pl.col(answer).fill_null("")
    block = pl.concat_str(pl.lit(f"{THINK_OPEN}\n"), pl.col(reasoning), pl.lit(f"\n{THINK_CLOSE}\n\n"), said)
    content = pl.when(pl.col(reasoning).fill_null("") == "").then(said).otherwise(block)
    return pl.concat_list(pl.struct(role=pl.lit("assistant"), content=content))


def _prompts(run: Run) -> pl.LazyFrame:
    """Prompts with their first source, without their messages."""
    first = pl.col("sources").list.first().struct
    return (
        run.scan("prompts")
        .with_columns(source=first.field("source"), source_license=first.field("license"))
        .drop("messages", "sources")
    )


def _replies(run: Run) -> pl.LazyFrame:
    """Replies that a release may hold, without their texts."""
    return run.scan("responses").filter(pl.col("role").is_in(CANDIDATE_ROLES)).drop("reasoning", "answer")


def _sft_index(run: Run, recipe: Recipe, chosen: pl.DataFrame) -> pl.DataFrame:
    replies = _replies(run)
    alike = ["prompt_id", "temperature", "role"]
    candidates = replies.group_by(alike).len("n_candidates")
    rollouts = run.scan("responses").filter(pl.col("role") == "student")
    writers = rollouts.select(prefix_response_id="response_id", student_revision="model_revision")
    who = run.scan("responses").select(original_id="response_id", reasoner="model", reasoner_revision="model_revision")
    rewritten = run.scan("rewrites").select("response_id", "original_id").join(who, on="original_id")
    is_rewrite = pl.col("role") == "rewrite"
    frame = (
        chosen.lazy()
        .rename({"grain_id": "response_id"})
        .join(replies, on="response_id", how="left")
        .join(candidates, on=alike, how="left")
        .join(writers, on="prefix_response_id", how="left")
        .join(rewritten, on="response_id", how="left")
        .with_columns(  # the card names who rewrote; a row says who reasoned
            model=pl.when(is_rewrite).then("reasoner").otherwise("model"),
            model_revision=pl.when(is_rewrite).then("reasoner_revision").otherwise("model_revision"),
        )
        .join(_prompts(run), on="prompt_id", how="left")
        .join(scores_of(run, recipe), on="response_id", how="left")
        .join(teacher_sentences(run, recipe, chosen), on="response_id", how="left")
        .with_columns(
            policy=pl.when(pl.col("role").is_in(["mixed", "rewrite"])).then("role").otherwise(pl.lit("teacher")),
            teacher=_label("model"),
            teacher_revision="model_revision",
        )
    )
    return frame.select(_beyond(RELEASE_KINDS["sft"], "prompt", "completion")).collect()


def _sft_rows(name: str, index: pl.DataFrame, texts: Gathered) -> Iterator[pl.DataFrame]:
    for part in _beside(index, texts.of(name)):
        said = part.with_columns(reasoning=pl.when(~pl.col("is_bare")).then("reasoning")) if "is_bare" in part else part
        yield said.with_columns(completion=_completion()).drop("reasoning", "answer")


def _grpo_index(run: Run, recipe: Recipe, chosen: pl.DataFrame) -> pl.DataFrame:
    prompts = _prompts(run).with_columns(solution=pl.col("gold"))
    frame = chosen.lazy().rename({"grain_id": "prompt_id"}).join(prompts, on="prompt_id", how="left")
    return frame.select(_beyond(RELEASE_KINDS["grpo"], "prompt")).collect()


def _grpo_rows(name: str, index: pl.DataFrame, texts: Gathered) -> Iterator[pl.DataFrame]:
    yield from index.iter_slices(_SLICE)


def _reward_index(run: Run, recipe: Recipe, chosen: pl.DataFrame) -> pl.DataFrame:
    """Preference pairs; a pair's id is chosen id and rejected id with a colon between."""
    parts = pl.col("grain_id").str.split_exact(":", 1).struct.rename_fields(["chosen_id", "rejected_id"])
    pairs = chosen.lazy().with_columns(parts.alias("ids")).unnest("ids")
    frame = pairs.join(run.scan("pairs"), on=["chosen_id", "rejected_id"], how="left")
    return frame.select("grain_id", "chosen_id", "rejected_id", "prompt_id", "gap", "position").collect()


def _reward_rows(name: str, index: pl.DataFrame, texts: Gathered) -> Iterator[pl.DataFrame]:
    start = 0
    for chosen, rejected in zip(texts.of(f"{name}:chosen"), texts.of(f"{name}:rejected"), strict=True):
        is_there = pl.col("prompt_id").is_not_null()
        messages = [part.select(pl.when(is_there).then(_completion())).to_series() for part in (chosen, rejected)]
        yield index.slice(start, chosen.height).with_columns(chosen=messages[0], rejected=messages[1])
        start += chosen.height


def _candidate_index(run: Run, recipe: Recipe) -> pl.DataFrame:
    """Every teacher reply with its scores, features, verdict and the rules it breaks, without texts."""
    broken = run.scan("rejections").group_by("response_id").agg(pl.col("rule_name").sort().alias("rejected_by"))
    features = run.scan("features").select(FEATURES.schema.names)
    scores = scores_of(run, recipe).select(SCORES.schema.names).drop("sentence_count", "status_detail")
    frame = (
        _replies(run)
        .join(_prompts(run).drop("language"), on="prompt_id", how="inner")
        .join(scores.rename({"status": "score_status"}), on="response_id", how="left")
        .join(deciding_verdicts(run), on="response_id", how="left")
        .join(features, on="response_id", how="left")
        .join(broken, on="response_id", how="left")
        .with_columns(pl.col("rejected_by").fill_null([]), _label("model"))
    )
    wanted = frame.select(_beyond(RELEASE_CANDIDATES, "prompt", "reasoning", "answer"))
    return wanted.collect(engine="streaming")  # in memory, joins this wide hold everything twice


def _logprobs(run: Run, before: Before, folder: Path, progress: Callable[[int, int], None]) -> Config:
    """Teacher logprobs of the selected replies."""
    kept = run.scan("selection").filter(pl.col("kind") == "sft").select(response_id="grain_id").unique()
    held = run.scan("logprobs").select("response_id").join(kept, on="response_id", how="semi").collect()
    ids = _in_order(held, "response_id", before("logprobs", "response_id"))["response_id"]
    schema = run.schema("logprobs")
    columns = [name for name in schema.names if name != "response_id"]
    rows = Gathered(run, "logprobs", columns, {"": ids}, folder, progress)
    return Config("logprobs", schema, len(ids), (_cast(part, schema) for part in rows.of("")))


def deciding_verdicts(run: Run) -> pl.LazyFrame:
    """The verdict that decides each reply, as in `stg_verdicts`: that of the prompt's verifier, else the strictest.

    Those that say correct or wrong come first, a judge's (verifier `judge…`) last among them.
    """
    prompts = run.scan("prompts").select("prompt_id", named="verifier")
    replies = run.scan("responses").select("response_id", "prompt_id").join(prompts, on="prompt_id", how="left")
    strictness = pl.Enum(["wrong", "correct", "unscorable", "timeout", "error"])
    return (
        run.scan("verdicts")
        .join(replies, on="response_id", how="left")
        .sort(
            ~pl.col("verdict").is_in(["correct", "wrong"]),
            pl.col("verifier").ne_missing(pl.col("named")),
            pl.col("verifier").str.starts_with("judge"),
            pl.col("verdict").cast(strictness),
            "verifier",
        )
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


def _beyond(schema: pa.Schema, *later: str) -> list[str]:
    """Columns of a schema but those that come later, and the prompt_id to find the prompt by."""
    return list(dict.fromkeys([*(name for name in schema.names if name not in later), "prompt_id"]))


def _cast(frame: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    """The frame in a release schema; ReleaseError names a column that has nulls where it may not."""
    table: pa.Table = frame.select(schema.names).to_arrow(compat_level=pl.CompatLevel.oldest())
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
