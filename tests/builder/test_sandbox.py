"""The parts of the sandbox one by one. Programs here are harmless; tests of the walls need bubblewrap."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sandbox_toys import without_bwrap

from builder.errors import VerifyError
from builder.sandbox import DEFAULT_LIMITS, Limits, Ran, bwrap_command, finish, sandbox_problem, sandboxed, start
from builder.sandbox_child import MODULE_MISSING

Run = Callable[..., Ran]


@pytest.fixture
def problem_asked_anew() -> Iterator[None]:
    sandbox_problem.cache_clear()
    yield
    sandbox_problem.cache_clear()


@pytest.fixture
def limited(tmp_path: Path) -> Run:
    """Run a harmless program in the sandbox's child process, with its limits and without bubblewrap."""
    child = without_bwrap(tmp_path)

    def run(source: str, stdin: bytes = b"", limits: Limits = DEFAULT_LIMITS) -> Ran:
        program = tmp_path / "program.py"
        program.write_text(source)
        return run_command(child("script", program, limits), stdin, limits)

    return run


def run_command(command: list[str], stdin: bytes = b"", limits: Limits = DEFAULT_LIMITS) -> Ran:
    process = start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return finish(process, stdin, limits)


def python(source: str) -> list[str]:
    return [sys.executable, "-S", "-c", source]


def test_the_command_unshares_everything_and_writes_nowhere_but_in_a_bounded_tmp(tmp_path: Path) -> None:
    command = bwrap_command("script", tmp_path / "p.py", Limits(file_bytes=4096))
    options = command[: command.index("--")]
    for namespace in ("user", "pid", "net", "ipc", "uts"):
        assert f"--unshare-{namespace}" in options
    assert {"--die-with-parent", "--as-pid-1", "--clearenv"} <= set(options)
    assert options[options.index("--cap-drop") + 1] == "ALL"
    assert not {"--bind", "--bind-try", "--dev-bind", "--share-net", "--dev-bind-try"} & set(options)
    assert options[options.index("--size") :][:4] == ["--size", "4096", "--tmpfs", "/tmp"]
    assert options.count("--tmpfs") == 1
    read_only = {options[i + 1] for i, option in enumerate(options) if option == "--remount-ro"}
    assert read_only == {"/dev", "/proc", "/"}


def test_the_sandbox_sees_system_directories_the_interpreter_and_one_program(tmp_path: Path) -> None:
    command = bwrap_command("script", tmp_path / "p.py", DEFAULT_LIMITS)
    bound = {command[i + 2] for i, option in enumerate(command) if option.startswith("--ro-bind")}
    python_home = str(Path(sys.base_prefix).resolve())
    assert {path for path in bound if not path.startswith("/sandbox/")} == {
        "/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", python_home
    }  # fmt: skip
    assert "/sandbox/program.py" in bound


def test_without_bubblewrap_nothing_is_run_and_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem_asked_anew: None
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VerifyError, match=r"`bwrap`\) is not installed.*or not at all.*Install bubblewrap"):
        sandboxed("script", tmp_path / "p.py", DEFAULT_LIMITS)


def test_a_bubblewrap_that_cannot_make_namespaces_is_refused_with_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem_asked_anew: None
) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(VerifyError, match="exit 1: bwrap: No permissions to create new namespace"):
        sandboxed("script", tmp_path / "p.py", DEFAULT_LIMITS)


def test_a_process_that_does_not_end_is_killed_at_the_wall_limit() -> None:
    ran = run_command(python("import time; print(1, flush=True); time.sleep(600)"), limits=Limits(wall_s=0.5))
    assert (ran.status, ran.stopped) == (None, "time")


def test_a_process_that_closes_its_output_and_stays_is_killed_at_the_wall_limit() -> None:
    ran = run_command(python("import os, time; os.close(1); time.sleep(600)"), limits=Limits(wall_s=0.5))
    assert ran.stopped == "time"


def test_a_flood_of_output_is_cut_at_the_limit() -> None:
    ran = run_command(python("while True: print('x' * 1000)"), limits=Limits(output_bytes=100_000))
    assert (ran.stopped, len(ran.output)) == ("output", 100_000)


def test_more_input_than_a_pipe_holds_comes_through_while_output_is_read() -> None:
    data = b"0123456789" * 200_000
    ran = run_command(python("import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())"), data)
    assert (ran.status, ran.output == data) == (0, True)


def test_a_program_may_leave_its_input_unread() -> None:
    assert run_command(python("print(7)"), b"x" * 1_000_000).output == b"7\n"


def test_a_program_runs_as_main_with_input_exit_and_quit(limited: Run) -> None:
    ran = limited("if __name__ == '__main__':\n    print(int(input()) + 1)\n    exit(3)", b"41\n")
    assert (ran.status, ran.output) == (3, b"42\n")


def test_memory_is_bounded(limited: Run) -> None:
    source = "try:\n    held = bytearray(300_000_000)\nexcept MemoryError:\n    print('none left')"
    assert limited(source, limits=Limits(memory_bytes=200_000_000)).output == b"none left\n"


def test_processor_time_is_bounded_also_for_a_program_that_ignores_the_signal(limited: Run) -> None:
    source = "import signal\nfor s in (signal.SIGXCPU, signal.SIGALRM, signal.SIGTERM):\n"
    source += "    signal.signal(s, lambda *_: None)\nwhile True: pass"
    limits = Limits(cpu_s=1, wall_s=60)
    ran = limited(source, limits=limits)
    assert ran.status == 137
    assert ran.used_up_time


def test_files_are_bounded_in_size_and_number(limited: Run) -> None:
    source = "import os, tempfile\nf = tempfile.TemporaryFile()\n"
    source += "try:\n    f.write(b'x' * 20_000); f.flush()\nexcept OSError as e:\n    print(e.strerror)\n"
    source += "try:\n    held = [os.open('/', os.O_RDONLY) for _ in range(100)]\nexcept OSError as e:\n"
    source += "    print(e.strerror)"
    ran = limited(source, limits=Limits(file_bytes=10_000, open_files=32))
    assert ran.output.decode().splitlines() == ["File too large", "Too many open files"]


@pytest.mark.parametrize(
    "attempt",
    [
        "os.fork()",
        "subprocess.run(['/bin/true'])",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "socket.socket()",
        "socket.create_connection(('127.0.0.1', 9))",
        "multiprocessing.Process(target=print).start()",
    ],
)
def test_processes_and_sockets_are_refused_also_to_root(limited: Run, attempt: str) -> None:
    source = f"import multiprocessing, os, socket, subprocess\ntry:\n    {attempt}\nexcept PermissionError:\n"
    assert limited(source + "    print('refused')").output == b"refused\n"


def test_threads_are_allowed(limited: Run) -> None:
    source = "import threading\nt = threading.Thread(target=print, args=['in a thread'])\nt.start()\nt.join()"
    assert limited(source).output == b"in a thread\n"


def test_a_missing_module_is_told_from_a_failure_of_the_program(limited: Run) -> None:
    assert limited("import numpy").status == MODULE_MISSING
    assert limited("import json.nothing").status == 1
