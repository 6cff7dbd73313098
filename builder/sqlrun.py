"""Run untrusted SQL against `run.duckdb`: in a child process, read-only, without files or network, within limits."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa

from builder.errors import SqlError, TableError
from builder.rules import SqlFile, Value, check_parameters
from builder.sqlcheck import parse_select

RULE_COLUMNS: Final = (("response_id", "varchar"), ("observed", "double"), ("threshold", "double"))
MIX_COLUMNS: Final = (("grain_id", "varchar"), ("stage", "varchar"))
SELECTOR_COLUMNS: Final = (("response_id", "varchar"), ("rank", "integer"))


@dataclass(frozen=True)
class Limits:
    """What one job may use: MiB of memory, threads, seconds of wall clock, MiB of temporary disk."""

    memory_mb: int = 4096
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    seconds: int = 600
    temp_mb: int = 65536


@dataclass(frozen=True)
class Check:
    """A query that finds no row where all is well; the first row fills `message`."""

    sql: str
    message: str


@dataclass(frozen=True)
class Step:
    """One SELECT whose rows become the temporary table (or view) `into` of the job.

    `columns` (name, type) must be exactly what the SELECT returns, in order; None takes what comes. `fetch` brings
    the rows back. `name` is what messages call the step.
    """

    name: str
    sql: str
    into: str
    columns: tuple[tuple[str, str], ...] | None = None
    checks: tuple[Check, ...] = ()
    view: bool = False
    fetch: bool = False


def rule_step(file: SqlFile, into: str, *, fetch: bool = False) -> Step:
    """A rule with the checks of its contract: known ids, each once, none NULL."""
    return Step(
        file.label, file.text, into, RULE_COLUMNS, _id_checks(into, "stg_responses", "a reply of this run"), fetch=fetch
    )


def selector_step(file: SqlFile, into: str, *, fetch: bool = False) -> Step:
    """A selector with the checks of its contract: survivors only, ranks 1..n per prompt and temperature."""
    gaps = (
        f"select s.prompt_id, s.temperature, count(*), min(r.rank), max(r.rank), count(distinct r.rank) "
        f"from {into} as r join survivors as s using (response_id) group by all "
        "having not coalesce(min(r.rank) = 1 and max(r.rank) = count(*) and count(distinct r.rank) = count(*), false) "
        "order by 1, 2 limit 1"
    )
    checks = (
        *_id_checks(into, "survivors", "a survivor"),
        Check(
            gaps,
            "ranks prompt {0} at temperature {1} with {2} rows, lowest rank {3}, highest {4}, {5} different; ranks "
            "must be 1..n without gaps or NULLs per prompt_id and temperature",
        ),
    )
    return Step(file.label, file.text, into, SELECTOR_COLUMNS, checks, fetch=fetch)


def mix_step(file: SqlFile, into: str) -> Step:
    """A mix with the checks of its contract: known replies, each once in a stage."""
    twice = f"select grain_id, stage, count(*) from {into} group by all having count(*) > 1 order by 1, 2 limit 1"
    foreign = f"select grain_id from {into} anti join stg_responses on response_id = grain_id order by 1 limit 1"
    checks = (
        Check(twice, "returns {0} for stage {1} {2} times; each may come once"),
        Check(foreign, "returns grain_id {0}, which is not a reply of this run"),
    )
    return Step(file.label, file.text, into, MIX_COLUMNS, checks)


def run_files(
    database: Path, files: Sequence[SqlFile], params: Mapping[str, Value], *, limits: Limits | None = None
) -> dict[str, pa.Table]:
    """Rows of each rule or selector by its name, every file against the same database, in one child process.

    Raises UsageError for a parameter that no file declares, SqlError for whatever the SQL does wrong.
    """
    check_parameters(files, params)
    steps = {
        file.name: (selector_step if file.kind == "selectors" else rule_step)(file, f"file_{index}", fetch=True)
        for index, file in enumerate(files)
    }
    tables = run_steps(database, list(steps.values()), params, limits=limits)
    return {name: tables[step.into] for name, step in steps.items()}


def query(
    run_database: Path, sql: str, params: Mapping[str, Value] | None = None, *, limits: Limits | None = None
) -> pa.Table:
    """Rows of one SELECT, for exploring: anything that reads the tables, `describe stg_scores` and chance included."""
    parse_select(sql, "The query", explore=True)
    step = Step("The query", sql, "answer", fetch=True)
    return run_steps(run_database, [step], params or {}, limits=limits)["answer"]


def run_steps(
    database: Path, steps: Sequence[Step], variables: Mapping[str, Value], *, limits: Limits | None = None
) -> dict[str, pa.Table]:
    """Run steps in order in one child; fetched tables by their `into`. The caller has checked untrusted SQL.

    Raises SqlError naming the step, TableError where there is no database.
    """
    if not database.is_file():
        raise TableError(f"There is no {database}: nothing was generated or imported in this run yet.")
    limits = limits or Limits()
    for name in variables:
        if not name.isidentifier():
            raise SqlError(f"{name!r} is no parameter name.")
    # Beside the database, because what spills may be large and /tmp may be memory.
    folder_of_run = database.resolve().parent
    beside = folder_of_run if os.access(folder_of_run, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix=".sql-", dir=beside) as folder:
        out = Path(folder, "out")
        out.mkdir()
        job = {
            "database": str(database.resolve()),
            "out": str(out),
            "temp": str(Path(folder, "temp")),
            "paths": [str(Path(module.__file__ or "").resolve().parent.parent) for module in (duckdb, pa)],
            "limits": asdict(limits),
            "variables": dict(variables),
            "steps": [asdict(step) for step in steps],
        }
        _run_child(job, limits, Path(folder))
        _raise_for_result(out / "result.json", steps, limits)
        return {step.into: _read_arrow(out / f"{step.into}.arrow") for step in steps if step.fetch}


def _run_child(job: Mapping[str, object], limits: Limits, folder: Path) -> None:
    """Start the child in a session of its own, so that a time-out ends it and whatever it started."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-X", "utf8", str(Path(__file__).with_name("sqlchild.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=folder,
        env={"PATH": os.defpath, "HOME": str(folder), "LC_ALL": "C.UTF-8"},
        start_new_session=True,
    )
    try:
        _, stderr = process.communicate(json.dumps(job).encode(), timeout=limits.seconds)
    except BaseException as error:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        raise SqlError(
            f"The SQL ran longer than {limits.seconds} s and was stopped. Look for a join without a condition or a "
            "recursion without an end."
        ) from None
    if process.returncode != 0:
        last = stderr.decode(errors="replace").strip().rpartition("\n")[2]
        why = f"signal {-process.returncode}" if process.returncode < 0 else f"exit status {process.returncode}"
        raise SqlError(
            f"The process that runs the SQL died ({why}{': ' + last if last else ''}): most likely its limit of "
            f"{limits.memory_mb} MiB of memory or {limits.seconds} s. Nothing was changed."
        )


def _raise_for_result(path: Path, steps: Sequence[Step], limits: Limits) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    error = result["error"]
    if error is None:
        return
    step, message = result["step"], result["message"]
    if error == "Contract":
        raise SqlError(f"{step} {message}.")
    if error == "OutOfMemoryException":
        raise SqlError(
            f"{step} needs more than its {limits.memory_mb} MiB of memory and {limits.temp_mb} MiB of disk. Look for a "
            f"join that multiplies rows. ({message.splitlines()[0]})"
        )
    if not any(known.name == step for known in steps):
        raise TableError(f"The run's database cannot be opened for reading: {message}")
    raise SqlError(f"{step} fails: {message}")


def _read_arrow(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        # A copy, because the file goes away with its folder.
        return pa.ipc.open_file(pa.py_buffer(source.read())).read_all()


def _id_checks(into: str, owner: str, meaning: str) -> tuple[Check, ...]:
    return (
        Check(
            f"select count(*) from {into} where response_id is null having count(*) > 0",
            "returns {0} rows whose response_id is NULL",
        ),
        Check(
            f"select response_id, count(*) from {into} group by all having count(*) > 1 order by 1 limit 1",
            "returns response_id {0} {1} times; each may come once",
        ),
        Check(
            f"select response_id from {into} anti join {owner} using (response_id) order by 1 limit 1",
            "returns response_id {0}, which is not " + meaning,
        ),
    )
