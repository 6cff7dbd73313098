"""Programs that attack the sandbox or the verdict: none gets out, none passes, and nothing of them stays."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from sandbox_toys import lives_on, needs_bwrap

from builder.code_verifier import code
from builder.sandbox import DEFAULT_LIMITS, Limits, Ran, end, finish, sandboxed, start
from builder.schema import TABLES
from builder.store import columns_table

pytestmark = needs_bwrap

SHORT = Limits(cpu_s=1, wall_s=0.4, memory_bytes=300_000_000, output_bytes=1_000_000, open_files=58)
ADDS_ONE = "assert f(1) == 2\nassert f(2) == 3"
PRINTS_SUM = json.dumps({"language": "python", "tests": [{"stdin": "1 2\n", "stdout": "3\n"}]})


def run(folder: Path, source: str, limits: Limits = DEFAULT_LIMITS) -> Ran:
    program = folder / "program.py"
    program.write_text(source)
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    return finish(start(sandboxed("script", program, limits), stdin=pipe, stdout=pipe, stderr=null), b"", limits)


LIBC = "ctypes.CDLL(None).syscall"
PTRACE, MEMFD_CREATE, SHMGET = {"aarch64": (117, 279, 194)}.get(os.uname().machine, (101, 319, 29))


@pytest.mark.parametrize(
    ("attempt", "seen"),
    [
        ("open('/tmp/mine', 'w').write('x')", "1"),
        ("open('/written', 'w')", "OSError"),
        ("open('/usr/written', 'w')", "OSError"),
        ("open('/dev/shm/written', 'w')", "OSError"),
        ("os.symlink('/usr', '/tmp/link') or open('/tmp/link/written', 'w')", "OSError"),
        ("open(%(home)r)", "FileNotFoundError"),
        ("os.listdir('/proc/%(pid)d/')", "FileNotFoundError"),
        ("[p for p in os.listdir('/proc') if p.isdigit()]", "['1']"),
        ("os.listdir('/proc/self/fd')", "['0', '1', '2', '3']"),
        ("open('/proc/sys/kernel/core_pattern', 'r+')", "OSError"),
        ("open('/proc/self/mem', 'r+b')", "OSError"),
        ("os.chmod('/dev/null', 0o666)", "OSError"),
        ("os.setxattr('/dev/null', 'user.mine', b'x')", "OSError"),
        ("open('/dev/null', 'w').write('x')", "1"),
        ("open('/tmp/suid', 'w') and os.chmod('/tmp/suid', 0o4755)", "OSError"),
        ("os.mknod('/tmp/disk', 0o060600, os.makedev(8, 0))", "OSError"),
        ("os.execv('/bin/sh', ['sh', '-c', 'id'])", "OSError"),
        ("os.setsid()", "OSError"),
        ("os.setpgid(0, 0)", "OSError"),
        ("ctypes.CDLL(None).prctl(1, 0)", "-1"),
        ("socket.socket(socket.AF_UNIX)", "OSError"),
        ("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", "OSError"),
        (f"{LIBC}({PTRACE}, 16, 1, 0, 0)", "-1"),
        (f"{LIBC}({MEMFD_CREATE}, b'name', 0)", "-1"),
        (f"{LIBC}({SHMGET}, 0, 4096, 0o1600)", "-1"),
        (f"{LIBC}(0x40000000 + 57)", "-1"),
        ("os.kill(%(pid)d, 9)", "ProcessLookupError"),
        ("os.kill(1, 9)", "None"),
        ("os.kill(0, 9)", "None"),
        ("os.kill(-1, 9)", "ProcessLookupError"),
        ("os.setuid(0 if os.getuid() else 1)", "OSError"),
        ("len(os.environ.get('SECRET', ''))", "0"),
        ("os.getcwd()", "/tmp"),
        ("resource.setrlimit(resource.RLIMIT_NOFILE, (10_000, 10_000))", "ValueError"),
    ],
)
def test_the_walls_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempt: str, seen: str) -> None:
    sleeper = subprocess.Popen(["/bin/sleep", "60"])
    monkeypatch.setenv("SECRET", "secret")
    filled = attempt % {"home": str(tmp_path / "program.py"), "pid": sleeper.pid} if "%(" in attempt else attempt
    source = f"import ctypes, os, resource, socket\ntry:\n    print({filled})\n"
    source += "except (FileNotFoundError, ProcessLookupError, ValueError) as e:\n    print(type(e).__name__)\n"
    source += "except OSError:\n    print('OSError')"
    try:
        ran = run(tmp_path, source)
        assert (ran.status, ran.output.decode().strip()) == (0, seen)
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


def test_no_file_of_the_kernel_can_be_written(tmp_path: Path) -> None:
    source = """import os
for folder, _, names in os.walk('/proc'):
    for name in names:
        try: os.close(os.open(f'{folder}/{name}', os.O_WRONLY | os.O_NONBLOCK))
        except OSError: continue
        print(f'{folder}/{name}')
"""
    written = run(tmp_path, source).output.decode().split()
    assert [path for path in written if "/fd/" not in path] == []


def test_threads_files_and_asyncio_work_inside(tmp_path: Path) -> None:
    source = """import asyncio, concurrent.futures, os, tempfile
with concurrent.futures.ThreadPoolExecutor(4) as pool: print(*pool.map(abs, [-1, 2]))
async def three(): return 3
print(asyncio.run(three()), len(os.urandom(4)))
with tempfile.NamedTemporaryFile('w+') as file: print(file.write('five5'))
print(open('/dev/stdin').read() == '')
"""
    assert run(tmp_path, source).output.split() == [b"1", b"2", b"3", b"4", b"5", b"True"]


@pytest.mark.parametrize("gold", [ADDS_ONE, PRINTS_SUM], ids=["asserts", "pairs"])
@pytest.mark.parametrize(
    "source",
    [
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=[3]).start()",
        "import threading, time\nthreading.stack_size(32768)\n"
        "while True: threading.Thread(target=time.sleep, args=[3]).start()",
        "i = 0\nwhile True:\n    open(f'/tmp/{i}', 'w').write('x' * 10**6)\n    i += 1",
        "i = 0\nwhile True:\n    open(f'/tmp/{i}', 'w').close()\n    i += 1",
        "while True: print('3' * 10**6)",
        "import os\nwhile True: os.write(2, b'x' * 65536)",
        "x = [0]\nwhile True: x += x",
        "import time\ntime.sleep(10**6)",
        "import os, time\nos.close(0), os.close(1), os.close(2)\ntime.sleep(10**6)",
        "import signal\n[signal.signal(s, signal.SIG_IGN) for s in range(1, 32) if s not in (9, 19)]\nwhile True: pass",
        "import os\nos.kill(os.getppid(), 9)\nos.kill(-1, 9)",
        "import os\nos.kill(0, 19)\nos.kill(os.getpid(), 11)\nwhile True: pass",
        "import os\nfor p in os.listdir('/proc'):\n    if p.isdigit() and int(p) != os.getpid(): os.kill(int(p), 9)",
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "import os\nos._exit(152)",
        "import atexit\natexit.register(print, 3)\natexit.register(print, 3)\ndef f(x): raise SystemExit",
        "import sys\nsys.excepthook = lambda *a: print(3)\nraise ValueError",
        "import ctypes\nctypes.string_at(0)",
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)\nf(1)",
        "import os\nfor n in range(3, 58):\n    try: os.write(n, b'\\xff' * 4096)\n    except OSError: pass",
    ],
)  # fmt: skip
def test_hostile_programs_come_to_a_named_verdict_and_leave_nothing(
    source: str, gold: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    outcome = code(gold, "python_tests", f"```python\n{source}\n```", False, SHORT)
    assert outcome.verdict in ("wrong", "timeout"), outcome.votes
    assert list(tmp_path.iterdir()) == []
    assert not lives_on(SHORT)


SEARCH = """import gc, os, sys
given, found = sys.stdin.read(), b''
for folder in [p for p in os.listdir('/proc') if p.isdigit()]:
    for name in ('cmdline', 'environ'): found += open(f'/proc/{folder}/{name}', 'rb').read()
    for line in open(f'/proc/{folder}/maps').readlines():
        first, last = (int(n, 16) for n in line.split()[0].split('-'))
        try: found += os.pread(os.open(f'/proc/{folder}/mem', os.O_RDONLY), last - first, first)
        except (OSError, OverflowError): pass
known = bytes(reversed(b'0526481937')) in found
def f(x): return 7391846249 + known
print(f(1))
"""


@pytest.mark.parametrize(
    ("gold", "verdict"),
    [
        ("assert f(1) == 7391846250", "wrong"),
        ('{"language": "python", "tests": [{"stdin": "", "stdout": "7391846250"}]}', "wrong"),
        ('{"language": "python", "tests": [{"stdin": "7391846250", "stdout": "7391846250"}]}', "correct"),
    ],
)
def test_what_the_tests_expect_is_not_in_the_programs_memory(gold: str, verdict: str) -> None:
    outcome = code(gold, None, f"```python\n{SEARCH}\n```", False)
    assert outcome.verdict == verdict, outcome.votes


@pytest.mark.parametrize(
    ("source", "tests"),
    [
        (
            "import types\nmath = types.SimpleNamespace(isclose=lambda *a: True)\ndef f(x): return 7",
            "import math\nfrom solution import *\nassert math.isclose(f(1), 2)",
        ),
        (
            "def same(a, b): return True\ndef f(x): return 7",
            "def same(a, b): return a == b\nfrom solution import *\nassert same(f(1), 2)",
        ),
    ],
)
def test_a_star_import_of_the_program_replaces_nothing_that_the_tests_define_or_import(source: str, tests: str) -> None:
    outcome = code(tests, None, f"```python\n{source}\n```", False)
    assert outcome.verdict == "wrong", outcome.votes


@pytest.mark.parametrize("text", ["'\\ud800'", "'\\x1b[31m\\x07'", "'\\x00'", "'a' * 10**6"])
def test_words_of_a_program_can_be_stored_and_shown(text: str) -> None:
    outcome = code(ADDS_ONE, None, f"```python\ndef f(x): raise ValueError({text})\n```", False)
    assert outcome.verdict == "wrong"
    assert len(outcome.votes[0]) < 600
    assert outcome.votes[0].isprintable()
    row = {"response_id": "r", "verifier": "code", "verifier_version": "1", "verdict": "wrong"}
    assert columns_table("verdicts", [row | {"votes": list(outcome.votes)}]).schema == TABLES["verdicts"].schema


def test_a_program_that_runs_while_its_tests_do_not_parse_is_ended_with_them() -> None:
    outcome = code("assert f(1) ==", None, "```python\nimport time\ntime.sleep(10**6)\n```", False, SHORT)
    assert outcome.verdict == "unscorable"
    assert not lives_on(SHORT)


def test_nothing_of_a_sandbox_lives_on_that_was_killed_at_any_moment_of_its_start(tmp_path: Path) -> None:
    program, limits = tmp_path / "program.py", Limits(open_files=57)
    program.write_text("import time\ntime.sleep(600)")
    command, moments = sandboxed("script", program, limits), random.Random(0)
    for _ in range(60):  # of the moments of bubblewrap's start one in ten would leave a process
        process = start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(0, 0.02))
        end(process)
    assert not lives_on(limits)


def test_nothing_of_a_sandbox_lives_on_when_the_one_who_started_it_is_killed(tmp_path: Path) -> None:
    program, mark, limits = tmp_path / "program.py", tmp_path / "mark", Limits(open_files=56)
    program.write_text("import ctypes, time\nctypes.CDLL(None).prctl(1, 0)\nprint(1, flush=True)\ntime.sleep(600)")
    source = f"""import subprocess
from pathlib import Path
from builder.sandbox import Limits, sandboxed, start
command = sandboxed("script", Path({str(program)!r}), Limits(open_files=56))
process = start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
Path({str(mark)!r}).write_bytes(process.stdout.read(1))
process.wait()
"""
    starter = subprocess.Popen([sys.executable, "-c", source])
    due = time.monotonic() + 20
    while not mark.exists() and time.monotonic() < due:
        time.sleep(0.02)
    assert mark.exists()
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    assert not lives_on(limits)
