"""The process that runs untrusted SQL: one job on standard input, results as Arrow files, nothing else.

Run as a script by `builder.sqlrun`, isolated, with an empty environment. It imports DuckDB and, for results, pyarrow;
never the rest of the project: starting it is a large part of what a changed filter costs.
"""

import json
import os
import re
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any


def main() -> None:
    """Read the job, limit this process, run the steps, write `result.json` beside the Arrow files."""
    job = json.load(sys.stdin)
    sys.path.extend(path for path in job["paths"] if path not in sys.path)
    limit_process(job["limits"])
    try:
        result = run(job)
    except MemoryError:
        result = {"error": "OutOfMemoryException", "message": "the process reached its memory limit", "step": ""}
    Path(job["out"], "result.json").write_text(json.dumps(result), encoding="utf-8")


def limit_process(limits: dict[str, int]) -> None:
    """Limits of the kernel: they hold even where DuckDB's own do not."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(limits["seconds"] + 5)
    megabyte = 2**20
    for name, value in (
        ("RLIMIT_CORE", 0),
        ("RLIMIT_CPU", limits["seconds"] * limits["threads"] + 5),
        # DuckDB stops earlier, with a message; results come on top of what it may spill.
        ("RLIMIT_FSIZE", (limits["temp_mb"] * 2 + 1024) * megabyte),
        # DuckDB counts its buffers; code, stacks and reserved address space come on top.
        ("RLIMIT_AS", (limits["memory_mb"] * 2 + 4096 + 64 * limits["threads"]) * megabyte),
    ):
        with suppress(ValueError, OSError, AttributeError):
            number = getattr(resource, name)
            hard = resource.getrlimit(number)[1]
            resource.setrlimit(number, (value if hard < 0 else min(value, hard),) * 2)


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Run the steps in order; stop at the first error."""
    import duckdb

    name = ""
    try:
        connection = connect(duckdb, job)
        offer_files(connection, job)
        connection.execute("set lock_configuration = true")
        for step in job["steps"]:
            name = step["name"]
            os.write(sys.stdout.fileno(), b".")  # `builder.sqlrun` counts these
            problem = run_step(connection, step, Path(job["out"]))
            if problem:
                return {"error": "Contract", "message": problem[1], "step": problem[0]}
    except duckdb.Error as error:
        return {"error": type(error).__name__, "message": str(error), "step": name}
    return {"error": None}


def connect(duckdb: Any, job: dict[str, Any]) -> Any:
    """A read-only connection that can reach no file, no network, no extension, and cannot be told otherwise."""
    limits = job["limits"]
    connection = duckdb.connect(
        job["database"],
        read_only=True,
        config={
            "enable_external_access": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "allow_community_extensions": "false",
            "python_enable_replacements": "false",
            "memory_limit": f"{limits['memory_mb']}MiB",
            "threads": str(limits["threads"]),
            "temp_directory": job["temp"],
            "max_temp_directory_size": f"{limits['temp_mb']}MiB",
        },
    )
    for name, value in job["variables"].items():
        connection.execute(f"set variable {name} = ?", [value])
    return connection


def offer_files(connection: Any, job: dict[str, Any]) -> None:
    """Tables that lie in files, as Arrow: SQL can read their rows, and nothing can write by way of them.

    They are what the job is given, and the views of the database that read Parquet, which DuckDB itself may not open
    here: each in place of the view of its name, where a step's SQL names it and no step makes it.
    """
    text = " ".join(step["sql"] for step in job["steps"]).lower()
    made = {step["into"] for step in job["steps"]}
    for name, path in job["given"].items():
        connection.register(name, read_rows(path))
    wanted = {name for name in VIEWS if name in text and name not in made}
    if "survivors" in wanted:
        wanted |= {"stg_rejections"} - made
    if not wanted:
        return
    built = dict(connection.execute("select name, made_from from stg_built").fetchall())
    for name in VIEWS:
        if name in wanted:
            offer_view(connection, name, json.loads(built[name]), Path(job["database"]).parent)


def read_rows(path: str) -> Any:
    """The rows of an Arrow file or of a part of a table."""
    if path.endswith(".parquet"):
        from pyarrow import parquet

        with parquet.ParquetFile(path) as file:  # of a rule that need not run: the reply's number is enough
            return file.read(["reply", "observed", "threshold"])
    import pyarrow as pa

    return pa.ipc.open_file(pa.memory_map(path)).read_all()


VIEWS = ("stg_sentences", "stg_rejections", "stg_selection", "survivors")
"""What `builder.staging` makes as views, in the order in which one reads another."""


def offer_view(connection: Any, name: str, made_from: dict[str, Any], run: Path) -> None:
    """A temporary view of the SQL that the database's view is made from, over the same files."""
    from pyarrow import dataset

    paths = [str(run / "tables" / part) for part in made_from["parts"]]
    if paths:
        table = Path(next(iter(made_from["parts"]))).parts[0]
        connection.register(table, dataset.dataset(paths, format="parquet"))
    if paths or name == "survivors":
        connection.execute(f"create temp view {name} as select * from (\n{made_from['sql']}\n)")
    else:
        # a table without rows: of the database's view DuckDB would know that it has none, and leave out its checks
        connection.execute(f"create temp table {name} as from main.{name}")


def run_step(connection: Any, step: dict[str, Any], out: Path) -> tuple[str, str] | None:
    """Bind, check columns, keep the rows as a temporary table, check rows; returns whose fault it is and what."""
    # The line breaks give the file its lines, and end a comment in its last one.
    rows = f"(\n{step['sql'].rstrip().removesuffix(';')}\n)"
    columns = step["columns"]
    casts = "*" if columns is None else ", ".join(f"{name}::{kind} as {name}" for name, kind in columns)
    try:
        if columns is not None:
            returned = [row[0] for row in connection.execute(f"describe select * from {rows}").fetchall()]
            if returned != [name for name, _ in columns]:
                wanted = ", ".join(name for name, _ in columns)
                problem = f"returns columns {', '.join(returned)}; it must return {wanted}, in this order"
                return step["name"], problem
        kind = "view" if step["view"] else "table"
        connection.execute(f"create or replace temp {kind} {step['into']} as select {casts} from {rows}")
    except Exception as error:
        raise type(error)(in_file(str(error))) from None
    for check in step["checks"]:
        row = connection.execute(check["sql"]).fetchone()
        if row is not None:
            name, row = (row[0], row[1:]) if check["names_step"] else (step["name"], row)
            return name, str(check["message"]).format(*row)
    if step["fetch"]:
        write_arrow(connection, f"from {step['into']}", out / f"{step['into']}.arrow")
    return None


def in_file(message: str) -> str:
    """The message with line numbers of the file: the statement around it begins one line earlier.

    A place in that first line is no place in the file, and is left out.
    """
    match = re.search(r"\n*^LINE (\d+)(: .*\n)( *\^)", message, re.MULTILINE)
    if match is None:
        return message
    line = int(match[1]) - 1
    if line == 0:
        return message[: match.start()] + message[match.end() :]
    caret = match[3][len(match[1]) - len(str(line)) :]
    return f"{message[: match.start(1)]}{line}{match[2]}{caret}{message[match.end() :]}"


def write_arrow(connection: Any, sql: str, path: Path) -> None:
    """Write rows as an Arrow IPC file, batch by batch."""
    import pyarrow as pa

    reader = connection.sql(sql).to_arrow_reader(100_000)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # DuckDB's threads and buffers need no orderly end
