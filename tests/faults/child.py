"""Runs `builder` with a fault in it, without a hook in the code that runs: operations of the standard library fail.

Reads one JSON order a line, forks (what was imported is imported once), answers `{"pid": …}`, and when the child has
ended `{"status": …, "peak_mb": …}`. An order:

    argv    of builder
    folder  only files below it can fail
    log     the teacher's log of this run: a line `hit` goes there when the fault strikes, and `unsynced` when a file is
            renamed into place, or a commit is acknowledged, without a sync
    kind    what happens, see DISK and NET
    at      at the how manieth operation, from 1; 0: never
    out     file for stdout and stderr
    only, disk, net, set, patience
            operations that count (a pattern; all on disk; all on the net), constants of modules to change, and the part
            of each random wait that is waited
"""

import errno
import fnmatch
import functools
import importlib
import io
import json
import os
import socket
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DISK = ("exit", "exit-after", "full", "broken", "broken-after", "late")
NET = ("exit", "exit-after", "reset", "late")
"""Death before or after the operation; no space, I/O error, I/O error although it was done; nothing for a while."""


class Faults:
    """Counts the operations of one process and lets the `at`-th one fail."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        self.count = 0
        self.synced: set[str] = set()

    def pass_by(self, name: str, act: Callable[[], Any], half: Callable[[], None] = lambda: None) -> Any:
        """One operation: done, or not, or half, or done and not told."""
        if not fnmatch.fnmatch(name, self.order.get("only", "*")):
            return act()
        self.count += 1
        if self.count != self.order["at"]:
            return act()
        self.say(f"hit {self.count} {name}")
        kind = self.order["kind"]
        if kind == "exit":
            os._exit(137)
        if kind == "exit-after":
            try:
                act()
            finally:
                os._exit(137)
        if kind == "late":
            time.sleep(0.2)
            return act()
        if kind == "broken-after":
            act()
        else:
            half()
        if name.startswith("sqlite"):
            raise sqlite3.OperationalError({"full": "database or disk is full"}.get(kind, "disk I/O error"))
        if kind == "reset":
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        number = errno.ENOSPC if kind == "full" else errno.EIO
        raise OSError(number, os.strerror(number))

    def say(self, what: str) -> None:
        log = os.open(self.order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(log, f"{what}\n".encode())
        os.close(log)

    def ours(self, path: Any) -> bool:
        try:
            return os.fspath(path).startswith(self.order["folder"])
        except TypeError:
            return False

    def install(self, *, disk: bool, net: bool) -> None:
        if disk:
            self.wrap_sqlite()
            self.wrap_files()
        if net:
            for name in ("send", "sendmsg", "recv", "recv_into"):
                self.wrap_socket(name)

    def wrap_sqlite(self) -> None:
        faults = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *values: Any) -> Any:
                words = " ".join(sql.split()[:2]).lower()
                if words == "commit" and super().execute("pragma synchronous").fetchone()[0] < 2:
                    faults.say("unsynced 0 commit")
                return faults.pass_by(f"sqlite {words}", lambda: super(Connection, self).execute(sql, *values))

            def executemany(self, sql: str, *values: Any) -> Any:
                return faults.pass_by("sqlite many", lambda: super(Connection, self).executemany(sql, *values))

            def executescript(self, sql: str) -> Any:
                return faults.pass_by("sqlite script", lambda: super(Connection, self).executescript(sql))

            def commit(self) -> None:
                return faults.pass_by("sqlite commit", lambda: super(Connection, self).commit())

        connect = sqlite3.connect

        def connected(database: Any, *values: Any, **named: Any) -> sqlite3.Connection:
            if "mode=ro" in str(database):  # readers are not part of this
                return connect(database, *values, **named)
            return faults.pass_by("sqlite connect", lambda: connect(database, *values, factory=Connection, **named))

        sqlite3.connect = connected  # type: ignore[assignment]

    def wrap_files(self) -> None:
        import pyarrow.parquet as pq

        fsync, plain, table = os.fsync, io.open, pq.write_table

        def synced(descriptor: int) -> None:
            self.pass_by("fsync", lambda: fsync(descriptor))
            self.synced.add(str(Path(f"/proc/self/fd/{descriptor}").readlink()))

        os.fsync = synced
        for name in ("replace", "rename", "link", "unlink", "remove", "mkdir", "open"):
            self.wrap_path(name)

        def write_table(rows: Any, where: Any, *values: Any, **named: Any) -> None:
            def half() -> None:
                with plain(where, "wb") as file:
                    file.write(b"PAR1 and no more")

            self.pass_by("write_table", lambda: table(rows, where, *values, **named), half)

        pq.write_table = write_table
        for name in ("write_table", "close"):
            self.wrap_writer(pq.ParquetWriter, name)

        def opened(path: Any, mode: str = "r", *values: Any, **named: Any) -> Any:
            file = plain(path, mode, *values, **named)
            return _Written(file, self) if self.ours(path) and set(mode) & set("wax+") else file

        io.open = opened  # type: ignore[assignment]
        import builtins

        builtins.open = opened  # type: ignore[assignment]

    def wrap_writer(self, writer: Any, name: str) -> None:
        """Row groups and footers that are written without Python: closing what is closed already is nothing."""
        original = getattr(writer, name)

        @functools.wraps(original)
        def wrapped(this: Any, *values: Any, **named: Any) -> Any:
            if not this.is_open:
                return original(this, *values, **named)
            return self.pass_by(f"parquet {name}", lambda: original(this, *values, **named))

        setattr(writer, name, wrapped)

    def wrap_path(self, name: str) -> None:
        original = getattr(os, name)

        @functools.wraps(original)
        def wrapped(path: Any, *values: Any, **named: Any) -> Any:
            if not self.ours(path) or (name == "mkdir" and Path(path).is_dir()):
                return original(path, *values, **named)
            if (
                name in ("replace", "rename", "link")
                and _is_record(path)
                and str(Path(path).resolve()) not in self.synced
            ):
                self.say(f"unsynced 0 {path}")
            return self.pass_by(f"{name} {Path(path).name}", lambda: original(path, *values, **named))

        setattr(os, name, wrapped)

    def wrap_socket(self, name: str) -> None:
        original = getattr(socket.socket, name)

        @functools.wraps(original)
        def wrapped(this: socket.socket, *values: Any) -> Any:
            if this.family == socket.AF_UNIX:  # the event loop talks to itself
                return original(this, *values)
            return self.pass_by(name, lambda: original(this, *values))

        setattr(socket.socket, name, wrapped)


def _is_record(path: Any) -> bool:
    """A file that counts once it is in place; what `builder status` shows of a run that goes on is a view."""
    return Path(path).is_file() and any(suffix in Path(path).name for suffix in (".parquet", ".yaml", ".json", ".md"))


class _Written:
    """A file whose writes count."""

    def __init__(self, file: Any, faults: Faults) -> None:
        self._file, self._faults = file, faults

    def write(self, data: Any) -> int:
        def act() -> int:
            number: int = self._file.write(data)
            self._file.flush()  # written means that the system has it
            return number

        return int(self._faults.pass_by(f"write {Path(self._file.name).name}", act))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Written":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Any:
        return iter(self._file)


def run(order: dict[str, Any]) -> None:
    """In the child: `builder` with the fault, then out."""
    os.setpgid(0, 0)
    out = os.open(order["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    import random

    random.uniform = lambda low, high: low + (high - low) * order.get("patience", 0.001)  # back-off, jitter
    for place, value in order.get("set", {}).items():  # such as builder.client:_TIMEOUT.read
        module, _, names = place.partition(":")
        *owners, name = names.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        assert hasattr(owner, name), place
        setattr(owner, name, value)
    faults = Faults(order)
    if order.get("at"):
        faults.install(disk=order.get("disk", True), net=order.get("net", True))
    from builder import cli

    sys.argv = ["builder", *order["argv"]]
    code = 1
    try:
        cli.main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    for name in ("aiohttp", "openai", "polars", "pyarrow.parquet", "httpx2"):
        importlib.import_module(name)
    for name in ("cli", "console", "pipeline", "recipe", "store"):
        importlib.import_module(f"builder.{name}")
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            run(order)
        print(json.dumps({"pid": child}), flush=True)
        _, status, used = os.wait4(child, 0)
        ended = {"status": os.waitstatus_to_exitcode(status), "peak_mb": used.ru_maxrss // 1024}
        print(json.dumps(ended), flush=True)


if __name__ == "__main__":
    main()
