"""Run untrusted SQL against `run.duckdb`: in a child process, read-only, without files or network, within limits."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa

from builder.console import Progress
from builder.errors import SqlError, TableError
from builder.rules import check_parameters
from builder.sqlcheck import parse_select, quoted, without_line_number
from builder.sqlfile import SqlFile, Value

RULE_COLUMNS: Final = (("response_id", "varchar"), ("observed", "double"), ("threshold", "double"))
MIX_COLUMNS: Final = (("grain_id", "varchar"), ("stage", "varchar"))
_NO_RULE: Final = (
    "select null::integer as rule, null::varchar as response_id, null::double as observed, null::double as threshold "
    "where false"
)
_MANY_CANDIDATES: Final = re.compile(r"((?:^\t.*\n){6})(?:^\t.*\n)+", re.MULTILINE)
"""What DuckDB lists where no function takes the given types: for `+` all 47 that there are."""
_LOOK_S: Final = 0.2
"""How often the process that runs the SQL is asked how far it is."""
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
    """A query that finds no row where all is well; the first row fills `message`.

    With `names_step`, the first column is what the message calls the step, and the others fill it.
    """

    sql: str
    message: str
    names_step: bool = False


@dataclass(frozen=True)
class Step:
    """One SELECT whose rows become the temporary table (or view) `into` of the job.

    `columns` (name, type) must be exactly what the SELECT returns, in order; None takes what comes. `fetch` brings
    the rows back. `name` is what messages call the step; `is_file` says that `sql` is a file, whose lines they number.
    """

    name: str
    sql: str
    into: str
    columns: tuple[tuple[str, str], ...] | None = None
    checks: tuple[Check, ...] = ()
    view: bool = False
    fetch: bool = False
    is_file: bool = False


def rule_step(file: SqlFile, into: str) -> Step:
    """A rule and its columns; `rows_step` checks the rows of all rules at once."""
    return Step(file.label, file.text, into, RULE_COLUMNS, is_file=True)


def rows_step(files: Mapping[str, SqlFile], into: str) -> Step:
    """Rows of all rules in one table, with the checks of a rule's contract: known ids, each once, none NULL.

    `files` by the names of the tables that hold their rows. The table: rule (place in `files`), reply,
    completion_tokens and role (null where the reply is unknown), response_id, observed, threshold.
    """
    labels = f"[{', '.join(quoted(file.label) for file in files.values())}][rule + 1]"
    places = {name: place for place, name in enumerate(files)}
    rows = [f"select {places[name]}::integer as rule, * from {name}" for name in files]
    numbered = (
        "select rule, reply, completion_tokens, role, broken.response_id, observed, threshold "
        f"from ({' union all '.join(rows) or _NO_RULE}) as broken left join reply_numbers using (response_id)"
    )
    nulls = f"select {labels}, count(*) from {into} where response_id is null group by all order by 1 limit 1"
    unknown = f"select {labels}, response_id from {into} where reply is null order by all limit 1"
    # by number, which is fast; the id is looked up only where there is something to say
    twice = (
        f"with twice as (select rule, reply, count(*) as times from {into} group by rule, reply having count(*) > 1) "
        f"select {labels}, response_id, times from twice join reply_numbers using (reply) order by all limit 1"
    )
    checks = (
        Check(nulls, "returns {0} rows whose response_id is NULL", True),
        Check(unknown, "returns response_id {0}, which is not a reply of this run", True),
        Check(twice, "returns response_id {0} {1} times; each may come once", True),
    )
    return Step("rows of all rules", numbered, into, None, checks if files else ())


def selector_step(file: SqlFile, into: str) -> Step:
    """A selector and its columns; `ranks_step` checks the rows."""
    return Step(file.label, file.text, into, SELECTOR_COLUMNS, is_file=True)


def ranks_step(file: SqlFile, ranked: str, survivors: str, into: str) -> Step:
    """A selector's rows in `ranked`, with the checks of its contract: survivors only, ranks 1..n per prompt and
    temperature. `survivors` and the table have reply and asked as in reply_numbers, and response_id; the table rank.
    """
    numbered = (
        f"select replies.reply, replies.asked, ranked.response_id, ranked.rank from {ranked} as ranked "
        f"left join {survivors} as replies using (response_id)"
    )
    # as many different ranks as rows, the lowest 1 and the highest their number: each of 1..n once; the exact count
    # takes three times as long as bits do, which tell up to 61 ranks apart
    gaps = (
        f"with suspects as (select asked from {into} group by asked having not coalesce(count(*) = count(rank) and "
        "min(rank) = 1 and max(rank) = count(*) and count(*) <= 61 "
        "and bit_or(1::bigint << least(greatest(rank, 0), 62)) = (2::bigint << least(count(*), 61)) - 2, false)), "
        f"ranks as (select asked, rank, count(*) as times from {into} semi join suspects using (asked) "
        "group by asked, rank), "
        "wrong as (select asked, sum(times) as rows, min(rank) as low, max(rank) as high, count(distinct rank) as "
        "ranks from ranks group by asked having not coalesce(bool_and(times = 1 and rank is not null) "
        "and min(rank) = 1 and max(rank) = count(*), false)) "
        "select distinct prompt_id, temperature, wrong.* exclude (asked) "
        "from wrong join reply_numbers using (asked) order by all limit 1"
    )
    nulls = f"select count(*) from {into} where response_id is null having count(*) > 0"
    unknown = f"select response_id from {into} where reply is null order by 1 limit 1"
    twice = f"select min(response_id), count(*) from {into} group by reply having count(*) > 1 order by 1 limit 1"
    checks = (
        Check(nulls, "returns {0} rows whose response_id is NULL"),
        Check(unknown, "returns response_id {0}, which is not a survivor"),
        Check(twice, "returns response_id {0} {1} times; each may come once"),
        Check(
            gaps,
            "ranks prompt {0} at temperature {1} with {2} rows, lowest rank {3}, highest {4}, {5} different; ranks "
            "must be 1..n without gaps or NULLs per prompt_id and temperature",
        ),
    )
    return Step(file.label, numbered, into, None, checks)


def mix_step(file: SqlFile, into: str) -> Step:
    """A mix with the checks of its contract: known replies, each once in a stage."""
    twice = f"select grain_id, stage, count(*) from {into} group by all having count(*) > 1 order by 1, 2 limit 1"
    foreign = f"select grain_id from {into} anti join stg_responses on response_id = grain_id order by 1 limit 1"
    checks = (
        Check(twice, "returns {0} for stage {1} {2} times; each may come once"),
        Check(foreign, "returns grain_id {0}, which is not a reply of this run"),
    )
    return Step(file.label, file.text, into, MIX_COLUMNS, checks, is_file=True)


def run_files(
    database: Path, files: Sequence[SqlFile], params: Mapping[str, Value], *, limits: Limits | None = None
) -> dict[str, pa.Table]:
    """Rows of each rule or selector by its name, every file against the same database, in one child process.

    Raises UsageError for a parameter that no file declares, SqlError for whatever the SQL does wrong.
    """
    check_parameters(files, params)
    rules = {f"file_{index}": file for index, file in enumerate(files) if file.kind == "rules"}
    steps = [replace(rule_step(file, name), fetch=True) for name, file in rules.items()]
    steps.append(rows_step(rules, "rows_of_rules"))
    fetched = {file.name: name for name, file in rules.items()}
    for index, file in enumerate(files):
        if file.kind == "selectors":
            ranked = replace(selector_step(file, f"file_{index}"), fetch=True)
            survivors = "(from reply_numbers semi join survivors using (response_id))"
            steps += [ranked, ranks_step(file, ranked.into, survivors, f"numbers_{index}")]
            fetched[file.name] = ranked.into
    tables = run_steps(database, steps, params, limits=limits)
    return {name: tables[into] for name, into in fetched.items()}


def query(
    run_database: Path,
    sql: str,
    params: Mapping[str, Value] | None = None,
    *,
    what: str = "The query",
    limits: Limits | None = None,
) -> pa.Table:
    """Rows of one SELECT, for exploring: anything that reads the tables, `describe stg_scores` and chance included.

    `what` is what messages call it.
    """
    parse_select(sql, what, explore=True)
    step = Step(what, sql, "answer", fetch=True, is_file=True)
    return run_steps(run_database, [step], params or {}, limits=limits)["answer"]


def run_steps(
    database: Path,
    steps: Sequence[Step],
    variables: Mapping[str, Value],
    *,
    limits: Limits | None = None,
    given: Mapping[str, pa.Table | Path] | None = None,
    progress: Progress = lambda *_: None,
) -> dict[str, pa.Table]:
    """Run steps in order in one child; fetched tables by their `into`. The caller has checked untrusted SQL.

    `given` are tables, or Parquet files of tables, that the steps read by name beside those of the database.
    `progress` gets the name of each step, how many are done, and how many there are.

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
        given = {name: _in_file(rows, Path(folder, f"{name}.arrow")) for name, rows in (given or {}).items()}
        job = {
            "database": str(database.resolve()),
            "out": str(out),
            "temp": str(Path(folder, "temp")),
            "paths": [str(Path(module.__file__ or "").resolve().parent.parent) for module in (duckdb, pa)],
            "limits": asdict(limits),
            "variables": dict(variables),
            "steps": [asdict(step) for step in steps],
            "given": {name: str(path) for name, path in given.items()},
        }
        names = [step.name.partition(" (")[0] for step in steps]  # without the paths of files
        _run_child(job, limits, Path(folder), lambda done: progress(names[done], done, len(names)))
        _raise_for_result(out / "result.json", steps, limits)
        return {step.into: _read_arrow(out / f"{step.into}.arrow") for step in steps if step.fetch}


def _run_child(job: Mapping[str, object], limits: Limits, folder: Path, begun: Callable[[int], None]) -> None:
    """Start the child in a session of its own, so that a time-out ends it and whatever it started.

    `begun` gets the place of every step that it begins, in order, each at most `_LOOK_S` late.
    """
    process = subprocess.Popen(
        [sys.executable, "-I", "-X", "utf8", str(Path(__file__).with_name("sqlchild.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,  # one byte for each step
        stderr=subprocess.PIPE,
        cwd=folder,
        env={"PATH": os.defpath, "HOME": str(folder), "LC_ALL": "C.UTF-8"},
        start_new_session=True,
    )
    try:
        stderr = _watched(process, json.dumps(job).encode(), limits.seconds, begun)
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


def _watched(process: "subprocess.Popen[bytes]", job: bytes, seconds: int, begun: Callable[[int], None]) -> bytes:
    """What the process writes on stderr until its end. Raises TimeoutExpired where that takes longer than `seconds`."""
    ends, told, text = time.monotonic() + seconds, 0, job
    while True:
        try:
            output, stderr = process.communicate(text, timeout=_LOOK_S)
        except subprocess.TimeoutExpired as late:
            if time.monotonic() >= ends:
                raise
            text, output, stderr = b"", late.output or b"", None
        for place in range(told, len(output)):
            begun(place)
        told = max(told, len(output))
        if stderr is not None:
            return stderr


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
    failed = [known for known in steps if known.name == step]
    if not failed:
        raise TableError(f"The run's database cannot be opened for reading: {message}")
    message = _MANY_CANDIDATES.sub(r"\1\t…\n", message if failed[0].is_file else without_line_number(message))
    raise SqlError(f"{step} fails: {message}")


def _in_file(rows: pa.Table | Path, path: Path) -> Path:
    """The file that holds these rows: the one given, else `path`, written here."""
    if isinstance(rows, Path):
        return rows.resolve()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as file:
        file.write_table(rows)
    return path


def _read_arrow(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        # A copy, because the file goes away with its folder.
        return pa.ipc.open_file(pa.py_buffer(source.read())).read_all()
