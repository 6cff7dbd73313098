r"""Does a program do what the gold's tests ask? The last fenced block of a reply, run in `builder.sandbox`.

Golds are Python tests as text (`assert f(2) == 3`, `test_*` functions, `unittest`, HumanEval's tests, which define
`check(candidate)` and should end in a line `check(f)`), or JSON:

- `["assert f(2) == 3", …]`, as MBPP has them;
- `{"asserts": "…", "entry_point": "f"}`, the last key for tests that define `check(candidate)` and do not call it;
- `{"inputs": ["…", …], "outputs": ["…", …]}`, standard input and output as APPS and TACO have them;
- `{"tests": [{"stdin": "…", "stdout": "…"}, …]}`, the same.

An object may have `"language"`: Python, the default, is the only one run; its standard library is all that a program
may import.

Nothing that a program says about itself counts. Its output is compared here, every line; its functions are called from
a process of its own, where the tests run and no line of the program does: they get the arguments and give plain data
(`builder.sandbox_calls`). That process alone knows the nonce of its verdict and has the pipe for it. So printing "OK",
ending with status 0, patching `assert`, `builtins` or `unittest`, or an `__eq__` that is always true do not pass.

Lines are compared without white space at their ends, and empty lines at the end of the output do not count; else every
line must be equal, and none may be missing or too many. Numbers are text: 0.5 is not 0.50. Exit status must be 0.

Verdicts: `correct`; `wrong` (also: an exception, an end before the tests, too much output or memory); `timeout`;
`unscorable` (no block of the language, a gold that does not parse or runs no test, a language or module that is not
here, tests that need more of an object than plain data tells: `==` of its own class, callbacks); `error` (no sandbox).

Not caught: a program that recognises the inputs; tests too weak to fail; helpers that tests take from the program
(HumanEval/32 asks the reply's own `poly`), which may lie; a program that makes itself `unscorable` by importing what is
not here. Objects that a program changes later, and aliases inside of its values, are not seen by tests.
"""

import json
import platform
import re
import secrets
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from builder.answers import LONGEST_ANSWER
from builder.errors import VerifyError
from builder.outcome import Outcome, Verdict
from builder.sandbox import DEFAULT_LIMITS, Limits, Ran, end, finish, sandboxed, start
from builder.sandbox_child import CANNOT_LIMIT, MODULE_MISSING

LONGEST_PROGRAM: Final = 1_000_000
"""Characters; a longer block is no answer to a question, and no interpreter is asked about it."""

TOTAL_S: Final = 60.0
"""Seconds for all tests of one program together."""

_RULES: Final = "2"
_NO_LIMITS: Final = "the limits on the program could not be set, so it was not run"
_NAMES: Final = {"py": "python", "python3": "python", "py3": "python"}
_FENCE: Final = re.compile(r"^([ \t]*+)(`{3,}+|~{3,}+)[ \t]*+([^\s`{]*+)[^\n`]*+$", re.MULTILINE)


@dataclass(frozen=True)
class Tests:
    """A gold as read: pairs of standard input and output, or Python tests."""

    language: str
    pairs: tuple[tuple[str, str], ...] = ()
    asserts: str = ""
    entry_point: str | None = None


def code(gold: str, gold_type: str | None, answer: str, cut: bool, limits: Limits = DEFAULT_LIMITS) -> Outcome:
    """Verdict on the reply's last block; `cut` says that the reply ended at its token limit. Never raises.

    Takes gold and reply as they were stored: folding characters would change programs and tests.
    """
    try:
        tests = read_tests(gold)
    except (ValueError, RecursionError) as problem:
        return _outcome("unscorable", None, f"the gold does not parse: {problem}")
    if tests.language != "python":
        return _outcome("unscorable", None, f"there is no interpreter for {tests.language!r} here")
    program = last_block(answer, tests.language, closed_only=cut)
    if program is None:
        empty = cut or not answer.strip()
        return _outcome("wrong" if empty else "unscorable", None, f"no {tests.language} block")
    if len(program) > LONGEST_PROGRAM:
        return _outcome("unscorable", program, f"a program of {len(program):,} characters")
    try:
        with tempfile.TemporaryDirectory(prefix="builder-code-") as folder:
            path = Path(folder, "program.py")
            path.write_text(program, encoding="utf-8", errors="replace", newline="")
            verdict, reason = _run_pairs(path, tests, limits) if tests.pairs else _run_asserts(path, tests, limits)
    except (VerifyError, OSError, ValueError) as problem:
        verdict, reason = "error", str(problem)
    return _outcome(verdict, program, reason)


def code_version() -> str:
    """Version of these rules and of the interpreter that runs the programs, such as `2 python 3.11`."""
    return f"{_RULES} python {'.'.join(platform.python_version_tuple()[:2])}"


def _outcome(verdict: Verdict, program: str | None, reason: str) -> Outcome:
    # A program chooses the words of its exceptions: half a surrogate pair could not be stored, a colour code be shown.
    shown = "".join(sign if sign.isprintable() else " " for sign in reason[:500])
    vote = f"code:{verdict}" + (f": {shown}" if shown else "")
    return Outcome(verdict, None if program is None else program[:LONGEST_ANSWER], (vote,))


def last_block(answer: str, language: str, *, closed_only: bool = False) -> str | None:
    """Content of the last fenced block of `language` after the last close-think tag, or None. Linear in the text.

    A block without a closing fence runs to the end, as in CommonMark, unless `closed_only`. Its lines lose the
    indentation of its fence. A fence inside an open block opens nothing.
    """
    text = answer.rpartition("</think>")[2].replace("\r\n", "\n")
    found: str | None = None
    opened: re.Match[str] | None = None
    for match in _FENCE.finditer(text):
        if opened is None:
            opened = match
        elif match[2].startswith(opened[2]) and match.group().strip() == match[2]:
            if _names(opened[3], language):
                found = _content(text[opened.end() + 1 : match.start()], opened[1])
            opened = None
    if opened is not None and not closed_only and _names(opened[3], language):
        found = _content(text[opened.end() + 1 :], opened[1])
    return found


def _names(label: str, language: str) -> bool:
    label = label.lower()
    return _NAMES.get(label, label) == language


def _content(text: str, indent: str) -> str:
    return "\n".join(line.removeprefix(indent) for line in text.split("\n")) if indent else text


def read_tests(gold: str) -> Tests:
    """Read a gold. Raises ValueError, which says what is wrong with it, or RecursionError."""
    text = gold.strip()
    if not text:
        raise ValueError("it is empty")
    if not text.startswith(("{", "[")):
        return Tests("python", asserts=gold)
    data = json.loads(text)
    if isinstance(data, list):
        return Tests("python", asserts=_lines_of(data))
    if set(data) - {"language", "entry_point"} not in ({"tests"}, {"asserts"}, {"inputs", "outputs"}):
        raise ValueError(
            "it needs `asserts`, or `tests`, or `inputs` and `outputs`, and may have `language` and `entry_point`; it "
            f"has {', '.join(sorted(data)) or 'nothing'}"
        )
    language, asserts, entry_point = data.get("language", "python"), data.get("asserts", ""), data.get("entry_point")
    if not all(isinstance(value, str) for value in (language, asserts, entry_point or "")):
        raise ValueError("`language`, `asserts` and `entry_point` must be strings")
    language = _NAMES.get(language.lower(), language.lower())
    if "asserts" in data:
        if not asserts.strip():
            raise ValueError("`asserts` is empty")
        return Tests(language, asserts=asserts, entry_point=entry_point)
    pairs = _pairs(data["tests"]) if "tests" in data else _columns(data["inputs"], data["outputs"])
    return Tests(language, pairs=pairs)


def _lines_of(asserts: list[Any]) -> str:
    """MBPP's list of asserts."""
    if not asserts or not all(isinstance(line, str) for line in asserts):
        raise ValueError("a list must hold at least one test, and Python in strings")
    return "\n".join(asserts)


def _columns(inputs: Any, outputs: Any) -> tuple[tuple[str, str], ...]:
    """APPS's and TACO's form: a text, or a list of lines, of input and of output for each test."""
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs) or not inputs:
        raise ValueError("`inputs` and `outputs` must be lists of the same length, of at least one test")
    texts = [[_text(side, number) for number, side in enumerate(sides, 1)] for sides in (inputs, outputs)]
    return tuple(zip(*texts, strict=True))


def _text(side: Any, number: int) -> str:
    if isinstance(side, str):
        return side
    if not isinstance(side, list) or not all(isinstance(line, str) for line in side):
        raise ValueError(f"input and output {number} must be strings or lists of lines")
    return "".join(f"{line}\n" for line in side)


def _pairs(tests: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(tests, list) or not tests:
        raise ValueError("`tests` must be a list of at least one test")
    pairs = []
    for number, test in enumerate(tests, 1):
        strings = isinstance(test, dict) and all(isinstance(value, str) for value in test.values())
        if not strings or set(test) != {"stdin", "stdout"}:
            raise ValueError(f"test {number} must have `stdin` and `stdout`, both strings, and nothing else")
        pairs.append((test["stdin"], test["stdout"]))
    return tuple(pairs)


def difference(expected: str, output: str) -> str | None:
    """Where two outputs differ, in words; None where they are equal by the rule of this module."""
    wanted, given = _lines(expected), _lines(output)
    for number, (want, give) in enumerate(zip(wanted, given, strict=False), 1):
        if want != give:
            return f"line {number} is {give[:60]!r}, not {want[:60]!r}"
    if len(wanted) != len(given):
        return f"{len(given)} lines, not {len(wanted)}"
    return None


def _lines(text: str) -> list[str]:
    lines = [line.rstrip(" \t\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _run_pairs(program: Path, tests: Tests, limits: Limits) -> tuple[Verdict, str]:
    """One process for each test, until one fails."""
    due = time.monotonic() + TOTAL_S
    command = sandboxed("script", program, limits)
    for number, (stdin, stdout) in enumerate(tests.pairs, 1):
        where = f"test {number} of {len(tests.pairs)}"
        if time.monotonic() >= due:
            return "timeout", f"{where} not reached within {TOTAL_S:g} s"
        process = start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        verdict, reason = _judge_output(finish(process, stdin.encode(errors="replace"), limits), stdout, limits)
        if verdict != "correct":
            return verdict, f"{where}: {reason}"
    return "correct", ""


def _judge_output(ran: Ran, expected: str, limits: Limits) -> tuple[Verdict, str]:
    if ran.used_up_time:
        return "timeout", f"not finished after {ran.wall_s:.1f} s"
    if ran.stopped == "output":
        return "wrong", f"more than {limits.output_bytes:,} bytes of output"
    if ran.status == CANNOT_LIMIT:
        return "error", _NO_LIMITS
    if ran.status == MODULE_MISSING:
        return "unscorable", "the program needs a module that is not in the standard library"
    if ran.status != 0:
        return "wrong", f"exit status {ran.status}"
    problem = difference(expected, ran.output.decode(errors="replace"))
    return ("wrong", problem) if problem else ("correct", "")


def _run_asserts(program: Path, tests: Tests, limits: Limits) -> tuple[Verdict, str]:
    """The program in one process, the tests in another; only a socket joins them."""
    nonce = secrets.token_hex(16)
    job = json.dumps({"nonce": nonce, "tests": tests.asserts, "entry_point": tests.entry_point}).encode()
    commands = [sandboxed("serve", program, limits), sandboxed("evaluate", None, limits)]
    theirs, ours = socket.socketpair()
    with theirs, ours:
        served = start(commands[0], stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            tester = start(commands[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=ours.fileno())
            theirs.close()
            ours.close()
            ran = finish(tester, job, limits)
            return _judge_tests(ran, nonce, served)
        finally:
            end(served)


def _status(process: "subprocess.Popen[bytes]") -> int | None:
    """Exit status of the program's process, None while it runs; 128 + signal where one killed it."""
    try:
        status = process.wait(1.0)
    except subprocess.TimeoutExpired:
        return None
    return status if status >= 0 else 128 - status


def _judge_tests(ran: Ran, nonce: str, served: "subprocess.Popen[bytes]") -> tuple[Verdict, str]:
    if ran.used_up_time:
        return "timeout", f"not finished after {ran.wall_s:.1f} s"
    sent, _, said = ran.output.decode(errors="replace").partition(" ")
    if sent != nonce:
        return "error", f"the tests came to no verdict (exit status {ran.status})"
    found = json.loads(said)
    if found["verdict"] != "ended":
        return found["verdict"], found["reason"]
    status = _status(served)
    if status == CANNOT_LIMIT:
        return "error", _NO_LIMITS
    if status is not None and Ran(status, b"", "", ran.wall_s).used_up_time:
        return "timeout", f"processor time used up after {ran.wall_s:.1f} s"
    return "wrong", f"{found['reason']} (exit status {status})"
