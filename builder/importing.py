"""Replies that others made → tables `prompts`, `responses`, `logprobs`: SQL experiments and scores without a request.

An imported reply is told by its content, so importing twice adds nothing and files that overlap merge. It answers no
request: `builder generate` afterwards asks, and pays, whatever the journal does not hold.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from builder.config import Recipe
from builder.errors import SourceError, UsageError
from builder.identity import canonical_json, normalized_prompt_id, sha256_hex
from builder.import_files import BadRow, first_columns, rows_of, tokens_of, uuids_of
from builder.import_formats import FORMATS, read_row, reader_of
from builder.import_prompts import PromptTable
from builder.import_result import Declared, ImportResult
from builder.import_run import SHARD, adopt, exclusive, forget, known_replies, without_mode
from builder.import_turns import Given
from builder.reply import MISSING_LOGPROB
from builder.store import Run, columns_table, file_sha256
from builder.tokens import AlignError, align

_CHUNK: Final = 4096
_CHUNK_BYTES: Final = 32_000_000
_GIVE_UP: Final = 100
"""Rows that do not fit, from the first on, after which the file is taken to be of another format."""
_STAGE_TEMPERATURES: Final = {"stage1": 0.6, "stage2": 1.0}
"""Configs of DASD's published set (technical report p.5-6, 12); their rows have no column for it."""
_COMPANION: Final = {"sample_uuid", "token_ids", "logprobs"}
"""Columns of Superior-Reasoning-SFT-gpt-oss-120b-Logprob (its page; spec/dasd.md section 8)."""


def import_files(
    run: Run,
    recipe: Recipe,
    files: Sequence[Path],
    name: str,
    declared: Declared,
    *,
    skip_bad: bool = False,
    progress: Callable[[int], None] | None = None,
) -> ImportResult:
    """Import replies of the recipe's teacher from `files`, all in format `name` (one of FORMATS).

    Nothing is imported unless every row fits; with `skip_bad` the others are, and `import-bad-rows.jsonl` in the run
    names each that was left out. Raises UsageError for what must be declared, SourceError for files and rows that do
    not fit, TableError when the disk refuses.
    """
    if name not in FORMATS:
        raise UsageError(f"--format {name!r} is not known; it is one of {', '.join(FORMATS)}, release.")
    for path in files:
        if not path.is_file():
            raise UsageError(f"{path} is no file (looked in {Path.cwd()}).")
    companions = [path for path in files if name == "dasd" and first_columns(path) >= _COMPANION]
    texts = [path for path in files if path not in companions]
    if not texts:
        raise UsageError("All files hold tokens only. Name the files with the replies too: their texts are needed.")
    with exclusive(run) as scratch:
        work = _Import(run, scratch, recipe, name, declared, skip_bad, progress)
        for path in companions:
            work.expected.update(uuids_of(path))
        for path in texts:
            work.read(path)
        for path in companions:
            work.read_tokens(path)
        return work.finish()


class _Import:
    """One import: what it knows of the run, and what it gathers in `scratch` until all of it is there."""

    def __init__(
        self,
        run: Run,
        scratch: Run,
        recipe: Recipe,
        name: str,
        declared: Declared,
        skip_bad: bool,
        progress: Callable[[int], None] | None,
    ) -> None:
        self.run, self.scratch, self.declared, self.skip_bad, self.progress = run, scratch, declared, skip_bad, progress
        self.name = name
        self.teacher = recipe.require_teacher()
        self.reader = reader_of(name, declared.requests)
        self.prompts = PromptTable(run)
        self.expected: set[str] = set()
        self.ids_by_uuid: dict[str, str] = {}
        self.known = known_replies(run)
        self.seen: dict[str, tuple[bool, bool]] = {}
        self.with_logprobs: set[str] = set()
        self.result = ImportResult()
        self.bad: list[dict[str, str]] = []
        self.rows: list[dict[str, Any]] = []
        self.logprobs: list[dict[str, Any]] = []
        self.bytes = 0
        self.total = 0

    def read(self, path: Path) -> None:
        """Read one file with replies into scratch parts."""
        source = {"source": path.name, "revision": file_sha256(path)}
        temperature = self.declared.temperature
        if temperature is None and self.name == "dasd":
            found = [re.findall("stage[12]", name) for name in (path.name, path.resolve().parent.name)]
            stages = set(found[0] or found[1])
            temperature = _STAGE_TEMPERATURES[stages.pop()] if len(stages) == 1 else None
        fitting = 0
        for place, row in rows_of(path):
            for given in [row] if isinstance(row, BadRow) else read_row(self.reader, row):
                if isinstance(given, BadRow):
                    self._name_bad(path, place, given, fitting)
                else:
                    fitting += 1
                    self._add((path, place), given, source, temperature)
        if not fitting:
            raise SourceError(f"{path} holds no reply in format {self.name}{self._examples()}. Nothing was imported.")

    def read_tokens(self, path: Path) -> None:
        """Read the companion's tokens of replies that are there."""
        for place, found in tokens_of(path):
            if isinstance(found, BadRow):
                self._name_bad(path, place, found, fitting=1)
                continue
            identity = self.ids_by_uuid.get(found.uuid)
            if identity is None:
                self.result.without_reply += 1
            elif identity in self.seen and identity not in self.with_logprobs:
                self._keep_logprobs(identity, found.ids, found.logprobs, found.nulls)
        self._flush()

    def _name_bad(self, path: Path, place: str, why: BadRow, fitting: int) -> None:
        self.bad.append({"file": str(path), "place": place, "why": str(why)})
        if not fitting and len(self.bad) >= _GIVE_UP:
            raise SourceError(
                f"The first {len(self.bad)} rows of {path} do not fit format {self.name}{self._examples()}. Is it the "
                f"right one of {', '.join(FORMATS)}? Nothing was imported."
            )

    def _examples(self) -> str:
        return "".join(f"\n  {Path(bad['file']).name} {bad['place']} {bad['why']}" for bad in self.bad[:5])

    def _add(self, where: tuple[Path, str], given: Given, source: Mapping[str, str], temperature: float | None) -> None:
        """One reply as rows, unless the run or this import has it already."""
        row = self._response(where, given, temperature)
        identity = row["response_id"]
        if given.uuid is not None and given.uuid in self.expected:
            if self.ids_by_uuid.setdefault(given.uuid, identity) != identity:
                why = f"uuid {given.uuid} names another reply too: its logprobs could be those of either"
                self._name_bad(*where, BadRow(why), fitting=1)
                return
            row["logprobs_mode"] = self.teacher.logprobs_mode
        self.prompts.add(row["prompt_id"], given.messages, given.prompt, self._source(given, source))
        says = (row["logprobs_mode"] is not None, row["finish_reason"] is not None)
        before = self.known.get(identity)
        if identity in self.seen or (before is not None and not _knows_more(says, before)):
            self.result.repeated += 1
            return
        self.seen[identity] = says
        self._count(row)
        self.rows.append(row)
        if given.tokens is not None:
            said = given.tokens.logprobs
            values = np.asarray([np.nan if value is None else value for value in said], np.float32)
            nulls = said.count(None) - given.tokens.nonfinite_count
            self._keep_logprobs(identity, given.tokens.token_ids, values, nulls, given)
        self.bytes += len(row["reasoning"] or "") + len(row["answer"] or "")
        if len(self.rows) >= _CHUNK or self.bytes >= _CHUNK_BYTES:
            self._flush()

    def _response(self, where: tuple[Path, str], given: Given, temperature: float | None) -> dict[str, Any]:
        facts = given.facts
        temperature = facts.get("temperature", temperature)
        if temperature is None:
            raise UsageError(
                f"{where[0]} {where[1]} does not say at which temperature its reply was sampled, and selectors rank "
                "the replies of one prompt and temperature. Give it with --temperature T: the authors' card or paper "
                "says which."
            )
        model = facts.get("model") or self.teacher.model
        if model != self.teacher.model:
            self.result.other_models[model] = self.result.other_models.get(model, 0) + 1
        row = {
            "prompt_id": normalized_prompt_id(given.messages),
            "role": "teacher",
            "model": model,
            "model_revision": self.teacher.revision if model == self.teacher.model else None,
            "temperature": float(temperature),
        }
        texts = [None if text is None else sha256_hex(text) for text in (given.reasoning, given.answer)]
        return {
            "response_id": sha256_hex(canonical_json({"imported": 1, "texts": texts, **row}))[:32],
            **row,
            "reasoning": given.reasoning,
            "answer": given.answer,
            "sample_index": facts.get("sample_index", 0),
            "seed": facts.get("seed"),
            "max_tokens": facts.get("max_tokens"),
            "reasoning_format": given.reasoning_format,
            "finish_reason": facts.get("finish_reason") or self.declared.finish_reason,
            "prompt_tokens": facts.get("prompt_tokens"),
            "completion_tokens": facts.get("completion_tokens"),
            "tool_calls": facts.get("tool_calls", 0),
            "replaced_characters": facts.get("replaced_characters", 0),
            "logprobs_mode": self.teacher.logprobs_mode if given.tokens else None,
            "prefix_chars": 0,
        }

    def _source(self, given: Given, source: Mapping[str, str]) -> dict[str, str | None]:
        return {**source, "license": given.prompt.get("license") or self.declared.license}

    def _count(self, row: Mapping[str, Any]) -> None:
        self.result.no_finish_reason += row["finish_reason"] is None
        self.result.no_token_count += row["completion_tokens"] is None

    def _keep_logprobs(
        self, identity: str, ids: Any, values: "np.ndarray[Any, Any]", nulls: int, given: Given | None = None
    ) -> None:
        """Queue a row of `logprobs`; without the tokens' bytes `builder score` aligns it by the teacher's tokenizer."""
        ends: np.ndarray[Any, Any] | None = None
        detail: str | None = "the file gives token ids without their bytes"
        if given is not None and given.tokens is not None:
            try:
                ends, detail = align(given.tokens.pieces, given.reasoning, given.answer), None
            except AlignError as error:
                detail = str(error)
        odd = ~(np.abs(values) < -MISSING_LOGPROB)
        self.logprobs.append(
            {
                "response_id": identity,
                "token_ids": np.asarray(ids, np.int32),
                "token_end": ends,
                "logprob": np.where(odd, np.float32(np.nan), values),
                "nonfinite_count": int(odd.sum()) - nulls,
                "align_detail": detail,
            }
        )
        self.with_logprobs.add(identity)
        self.bytes += 12 * len(values)
        if self.bytes >= _CHUNK_BYTES:
            self._flush()

    def _flush(self) -> None:
        self.scratch.append("responses", columns_table("responses", self.rows), shard=SHARD)
        self.scratch.append("logprobs", columns_table("logprobs", self.logprobs), shard=SHARD)
        self.total += len(self.rows)
        self.rows, self.logprobs, self.bytes = [], [], 0
        if self.progress:
            self.progress(self.total)

    def finish(self) -> ImportResult:
        """Move what was gathered into the run; refuse all of it where a row did not fit."""
        self._flush()
        result = self.result
        result.bad = len(self.bad)
        if self.bad and not self.skip_bad:
            raise SourceError(
                f"{len(self.bad):,} rows do not fit format {self.name}{self._examples()}\nNothing was imported. Mend "
                "them, or rerun with --skip-bad to import the others."
            )
        if self.bad:
            path = self.run.root / "import-bad-rows.jsonl"
            path.write_bytes(msgspec.json.Encoder().encode_lines(self.bad))
            result.bad_rows = str(path)
        result.completed = sum(identity in self.known for identity in self.seen)
        result.replies = len(self.seen) - result.completed
        result.prompts, result.with_logprobs = self.prompts.added, len(self.with_logprobs)
        self._move()
        self.run.event("import", {"format": self.name, **asdict(result)})
        return result

    def _move(self) -> None:
        """Prompts, logprobs, responses, in this order, by rename. A rerun after a crash adds what is missing."""
        promised = {identity for identity in self.ids_by_uuid.values() if identity in self.seen}
        without_mode(self.scratch, promised - self.with_logprobs)
        self.prompts.write()
        better = {identity for identity in self.seen if identity in self.known}
        forget(self.run, better, ("responses", "verdicts"))
        if self.with_logprobs:  # what is there of them is older, or was left by a crash without its reply
            forget(self.run, self.with_logprobs, ("logprobs", "scores", "sentences"))
        adopt(self.run, self.scratch, ("logprobs", "responses"))


def _knows_more(now: tuple[bool, bool], before: tuple[bool, bool]) -> bool:
    """Whether a reply that is there comes with logprobs or a finish_reason that it lacks, and lacks nothing it has."""
    return now != before and all(here >= there for here, there in zip(now, before, strict=True))
