"""Somebody's release → a run of one's own: other rules and selectors over their candidates, without a request.

Config `candidates` holds replies, prompts, scores and verdicts. It does not hold what follows, and nothing is made up
for it: logprobs (unless config `logprobs` was released, for the selected replies), scores sentence by sentence, the
verifiers that gave the verdicts, languages, the rollouts behind mixed rows, prices and times. Features are computed
anew from the texts. Response and prompt ids stay, so two versions of one dataset merge.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import ValidationError

from builder.config import NAME, Recipe, Student
from builder.errors import ReleaseError
from builder.import_prompts import PromptTable
from builder.import_result import ImportResult
from builder.import_run import SHARD, adopt, exclusive, forget, known_replies
from builder.models import resolved_revision, student_id
from builder.published import Published, read_text
from builder.release_rows import fit
from builder.rewrite_prompt import outcome_of
from builder.rules import catalogue
from builder.schema import CANDIDATE_ROLES, RELEASE_CANDIDATES, TABLES
from builder.store import Run, write_text

VERIFIER: Final = "published"
"""Verifier of the verdicts that came with a release, which does not name its own; `builder verify` adds one's own."""
_SQL_FILE: Final = re.compile(r"\.builder/(sql/(?:rules|selectors|mix)/\w+\.sql)")
_BATCH: Final = 4096
_SCORES: Final = {"score_status": "status"}


def derive(published: Published, root: Path | None) -> tuple[Path, Path]:
    """Recipe and run directory of a run made from this release: their recipe, and their SQL where it is not packaged.

    A recipe that is there already stays as it is. Only SQL is taken over, never Python. Raises ReleaseError.
    """
    manifest = published.manifest
    name = f"{manifest.recipe_name}-{manifest.version}-{published.revision[:8]}"
    if not NAME.fullmatch(name):
        raise ReleaseError(f"{published.source} is made by a recipe named {name!r}, which cannot name a folder.")
    root = root or Path("runs") / name
    path = root / "recipe.yaml"
    if not path.is_file():
        recipe = _made_safe(_their_recipe(published))
        recipe["name"] = name
        if recipe.get("student") and manifest.student:
            recipe["student"]["revision"] = manifest.student["revision"]
        listed = [file for file in manifest.files if _SQL_FILE.fullmatch(file.path)]
        for found in published.get(listed):
            inner, text = found.relative_to(published.root / ".builder"), read_text(found)
            packaged = catalogue(inner.parts[1]).get(inner.stem)
            if packaged is None or packaged.read_text(encoding="utf-8") != text:
                write_text(text, root / inner)
        write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), path)
    return path, root


def _made_safe(recipe: dict[str, Any]) -> dict[str, Any]:
    """Without what would send one's key to their endpoints, read files of this machine, or publish to their repository.

    `builder release` writes no endpoints and no folders; a stranger's file may name some all the same.
    """
    for section, names in (
        ("teacher", ("endpoints",)),
        ("judge", ("endpoints",)),
        ("student", ("endpoint", "backend")),
    ):
        for name in names:
            (recipe.get(section) or {}).pop(name, None)
    sources = recipe.get("prompts") or []
    recipe["prompts"] = [one for one in sources if isinstance(one, dict) and str(one.get("source")).startswith("hf://")]
    if isinstance(recipe.get("release"), dict):
        recipe["release"]["repo"] = None
    return recipe


def import_release(run: Run, recipe: Recipe, published: Published) -> ImportResult:
    """Import the candidates of a release. Raises ReleaseError where it has none, or in other columns than today's."""
    files = published.files("candidates")
    if not files:
        raise ReleaseError(
            f"{published.source} has no config candidates, so there is nothing to select from: "
            f"{', '.join(published.configs) or 'no configs'}."
        )
    for path in files:
        _check_columns(path)
    with exclusive(run) as scratch:
        result = _Candidates(run, scratch, recipe, published).read(files)
    run.event("import", {"format": "release", "source": published.source, "revision": published.revision})
    return result


class _Candidates:
    """One import of a release, gathered in `scratch` until all of it is there."""

    def __init__(self, run: Run, scratch: Run, recipe: Recipe, published: Published) -> None:
        self.run, self.scratch, self.published = run, scratch, published
        self.prompts = PromptTable(run)
        self.known = set(known_replies(run))
        self.student = _student_of(published)
        self.is_same_student = recipe.student is not None and _is_same(recipe.student, self.student)
        self.own_id = student_id(recipe.student) if recipe.student else None
        self.origins = _origins(published)
        self.foreign_scores: set[str] = set()
        self.result = ImportResult()

    def read(self, files: list[Path]) -> ImportResult:
        held = self._logprobs()
        seen: set[str] = set()
        for path in files:
            for batch in pq.ParquetFile(path).iter_batches(batch_size=_BATCH):
                rows: Any = pl.from_arrow(pa.Table.from_batches([batch]))
                fresh = rows.filter([one not in self.known for one in rows["response_id"]])
                self.result.repeated += rows.height - fresh.height
                for one in fresh["response_id"]:
                    if one in seen:
                        raise ReleaseError(f"{path} holds response {one} twice. Nothing was imported.")
                    seen.add(one)
                self._add(path, fresh, held)
        self.result.replies = len(seen)
        self.result.prompts = self.prompts.added
        self.result.with_logprobs = len(held & seen)
        self._note()
        self.prompts.write()
        forget(
            self.run, seen, ("logprobs", "scores", "verdicts", "rewrites")
        )  # what a crash left there without its reply
        adopt(self.run, self.scratch, ("logprobs", "scores", "verdicts", "rewrites", "responses"))
        return self.result

    def _logprobs(self) -> set[str]:
        """Released logprobs of replies that are not in the run, into scratch; their ids."""
        schema = TABLES["logprobs"].schema
        held: set[str] = set()
        for path in self.published.files("logprobs"):
            if not pq.read_schema(path).remove_metadata().equals(schema.remove_metadata()):
                raise ReleaseError(
                    f"{path} has other columns than table logprobs. Another version of tempered wrote it."
                )
            for batch in pq.ParquetFile(path).iter_batches(batch_size=_BATCH):
                ids = batch.column("response_id").to_pylist()
                fresh = batch.filter(pa.array([one not in self.known for one in ids]))
                self.scratch.append("logprobs", pa.Table.from_batches([fresh]), shard=SHARD)
                held.update(map(str, ids))
        return held

    def _add(self, path: Path, rows: pl.DataFrame, held: set[str]) -> None:
        for name in ("response_id", "prompt_id", "prompt", "role", "model", "temperature", "sample_index"):
            if rows[name].null_count():
                raise ReleaseError(f"{path} has {rows[name].null_count()} rows without {name}. Nothing was imported.")
        if foreign := set(rows["role"]) - set(CANDIDATE_ROLES):
            raise ReleaseError(f"{path} has replies of role {', '.join(sorted(foreign))}, which are no candidates.")
        for row in rows.unique("prompt_id", keep="first").select(*_PROMPT).iter_rows(named=True):
            self._add_prompt(row)
        has_logprobs = pl.Series([one in held for one in rows["response_id"]], dtype=pl.Boolean)
        mode = pl.when(has_logprobs).then("logprobs_mode").alias("logprobs_mode")
        self._append("responses", rows.with_columns(mode))
        rewrites = rows.filter(pl.col("role") == "rewrite", pl.col("prefix_response_id").is_not_null())
        said = [outcome_of(row) for row in rewrites.iter_rows(named=True)]
        linked = rewrites.with_columns(original_id="prefix_response_id", outcome=pl.Series(said, dtype=pl.String))
        self._append("rewrites", linked)
        scored = rows.filter(pl.col("score_status").is_not_null(), pl.col("student_id").is_not_null()).rename(_SCORES)
        self.foreign_scores.update(map(str, scored["student_id"]))
        if self.is_same_student:
            scored = scored.with_columns(student_id=pl.lit(self.own_id))
        self._append("scores", scored)
        judged = rows.filter(pl.col("verdict").is_not_null())
        version = f"{self.published.source}@{self.published.revision}"
        self._append(
            "verdicts", judged.with_columns(verifier=pl.lit(VERIFIER), verifier_version=pl.lit(version), votes=None)
        )

    def _append(self, name: str, rows: pl.DataFrame) -> None:
        """The columns of a table that these rows have; null in all others, as a release has no prices and times."""
        schema = TABLES[name].schema
        empty: Any = pl.from_arrow(schema.empty_table())
        missing = [pl.lit(None, dtype=empty.schema[one]).alias(one) for one in schema.names if one not in rows.columns]
        self.scratch.append(name, fit(rows.with_columns(missing).select(schema.names).to_arrow(), schema), shard=SHARD)

    def _add_prompt(self, row: dict[str, Any]) -> None:
        columns = {name: row[name] for name in ("gold", "gold_type", "domain")}
        self.prompts.add(row["prompt_id"], row["prompt"], columns, *self._sources(row["prompt_id"]))

    def _sources(self, prompt_id: str) -> Iterator[dict[str, str | None]]:
        """Where the question came from at first, as far as the release says; then the release itself."""
        if origin := self.origins.get(prompt_id, self.origins.get("")):
            yield origin
        license = self.published.manifest.license
        yield {"source": self.published.source, "revision": self.published.revision, "license": license}

    def _note(self) -> None:
        if self.foreign_scores and not self.is_same_student and self.foreign_scores != {self.own_id}:
            named = (self.published.manifest.student or {}).get("model")
            self.result.notes.append(
                f"the scores are those of student {named!r}, which is not the recipe's: they count for no selection of "
                "this recipe. Name that student, or run builder score, which needs logprobs (config logprobs, or "
                "teacher.rescore)"
            )


_PROMPT: Final = ("prompt_id", "prompt", "gold", "gold_type", "domain")


def _check_columns(path: Path) -> None:
    """Raise ReleaseError unless the file has the columns of config candidates that are read here, in their types."""
    found = pq.read_schema(path)
    read = [*_PROMPT, *TABLES["responses"].content_columns, "student_id", "score_status", "verdict", "extracted"]
    read += [name for name in TABLES["scores"].schema.names if name in RELEASE_CANDIDATES.names]
    for name in read:
        wanted = RELEASE_CANDIDATES.field(name).type
        other = found.field(name).type if name in found.names else None
        if other != wanted:
            raise ReleaseError(
                f"{path} has {other or 'nothing'} where config candidates has {wanted}: column {name}. It was released "
                "by another version of tempered; use that one."
            )


def _origins(published: Published) -> dict[str, dict[str, str | None]]:
    """First source of each prompt that a stage holds; under `` that of all prompts, where there is one only."""
    keys = ("source", "revision", "license")
    listed = [{key: source.get(key) for key in keys} for source in published.manifest.prompts]
    if len(listed) == 1:
        return {"": listed[0]}
    revisions = {(one["source"], one["license"]): one["revision"] for one in listed}
    found: dict[str, dict[str, str | None]] = {}
    for config in published.configs:
        for path in published.files(config) if config not in ("candidates", "logprobs") else ():
            names = pq.read_schema(path).names
            if not {"prompt_id", "source", "source_license"} <= set(names):
                continue
            for batch in pq.ParquetFile(path).iter_batches(columns=["prompt_id", "source", "source_license"]):
                for row in batch.to_pylist():
                    source, license = row["source"], row["source_license"]
                    if source is not None:
                        revision = revisions.get((source, license))
                        found[row["prompt_id"]] = {"source": source, "revision": revision, "license": license}
    return found


def _their_recipe(published: Published) -> dict[str, Any]:
    text = published.text(".builder/recipe.yaml")
    try:
        recipe = yaml.safe_load(text or "")
    except yaml.YAMLError as error:
        raise ReleaseError(f"The recipe of {published.source} is not YAML: {error}.") from error
    if not isinstance(recipe, dict):
        raise ReleaseError(f"{published.source} holds no recipe, so give one of your own: builder import RECIPE.")
    return recipe


def _student_of(published: Published) -> Student | None:
    """The student whose scores these are, by their recipe and manifest."""
    section, named = _their_recipe(published).get("student"), published.manifest.student
    if not isinstance(section, dict) or named is None:
        return None
    try:
        return Student.model_validate(section | {"revision": named["revision"]})
    except ValidationError:
        return None


def _is_same(mine: Student, theirs: Student | None) -> bool:
    """Whether both are the same weights, asked in the same way; a folder's weights, wherever it lies."""
    if theirs is None or (mine.system_prompt, mine.dtype) != (theirs.system_prompt, theirs.dtype):
        return False
    if resolved_revision(mine.model, mine.revision) != theirs.revision:
        return False
    return mine.model == theirs.model or Path(mine.model).name == theirs.model or len(theirs.revision or "") == 64
