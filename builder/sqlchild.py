"""The process that runs untrusted SQL: one job on standard input, results as Arrow files, nothing else.

Run as a script by `builder.sqlrun`, isolated, with an empty environment. It imports DuckDB and, for results, pyarrow;
never the rest of the project: starting it is a large part of what a changed filter costs.
"""

import json
import os
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
        for step in job["steps"]:
            name = step["name"]
            problem = run_step(connection, step, Path(job["out"]))
            if problem:
                return {"error": "Contract", "message": problem, "step": name}
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
    connection.execute("set lock_configuration = true")
    return connection


def run_step(connection: Any, step: dict[str, Any], out: Path) -> str | None:
    """Bind, check columns, keep the rows as a temporary table, check rows; returns what is wrong."""
    sql = step["sql"].strip().removesuffix(";")
    relation = connection.sql(step["sql"])
    columns = step["columns"]
    if columns is not None and relation.columns != [name for name, _ in columns]:
        wanted = ", ".join(name for name, _ in columns)
        return f"returns columns {', '.join(relation.columns)}; it must return {wanted}, in this order"
    casts = "*" if columns is None else ", ".join(f"{name}::{kind} as {name}" for name, kind in columns)
    kind = "view" if step["view"] else "table"
    # The line break ends a comment in the file's last line.
    connection.execute(f"create or replace temp {kind} {step['into']} as select {casts} from (\n{sql}\n)")
    for check in step["checks"]:
        row = connection.execute(check["sql"]).fetchone()
        if row is not None:
            return str(check["message"]).format(*row)
    if step["fetch"]:
        write_arrow(connection, f"from {step['into']}", out / f"{step['into']}.arrow")
    return None


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
