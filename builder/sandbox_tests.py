"""The process that runs the tests of a gold. The program is in another one: here its functions are remote.

Tests are Python: asserts at top level, `check(candidate)` as HumanEval has it, functions `test_*` without arguments,
`unittest` cases; the program's names are global, and in the module `solution`. Every test must pass and one must run.

A name that the tests use and do not define comes from the program, but never a built-in (a program that defines its
own `set` cannot decide a comparison), and never a module of the standard library that tests use as one. Only where
tests name nothing but built-ins, the program's function of such a name is what they test.
"""

import ast
import builtins
import importlib
import json
import os
import sys
import types
from collections.abc import Iterator
from typing import Any, Final, NoReturn

from builder.sandbox_calls import decode, encode, receive, send

_COUNT: Final = "_count_of_asserts"
_NEVER_HERE: Final = ("ModuleNotFoundError", "StopIteration", "StopAsyncIteration")
"""Exceptions that would mean something to us, or end a loop of the tests early: `all(map(f, cases))` would be true."""


class Gone(BaseException):
    """The program ended, or sent what is no answer. Tests cannot catch it by `except Exception`."""


class Unsupported(BaseException):
    """The tests ask for what cannot be decided through handles: nobody can tell, so the verdict is `unscorable`."""


class RemoteError(Exception):
    """An exception of the program that is no built-in one."""


def evaluate() -> None:
    """Job on standard input, channel to the program as standard error, `NONCE {"verdict", "reason"}` as output."""
    job = json.load(sys.stdin)
    answers, channel = os.dup(1), os.dup(2)
    for number in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
    verdict, reason = _verdict(channel, job["tests"], job["entry_point"])
    os.write(answers, f"{job['nonce']} {json.dumps({'verdict': verdict, 'reason': reason[:200]})}".encode())


def _verdict(channel: int, tests: str, entry_point: str | None) -> tuple[str, str]:  # noqa: PLR0911 (one per way to end)
    try:
        tree = ast.parse(tests)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as problem:
        return "unscorable", f"the tests do not parse: {type(problem).__name__}: {problem}"
    try:
        return _run(Program(channel), tree, entry_point)
    except Gone as problem:
        return "ended", str(problem)
    except Unsupported as problem:
        return "unscorable", str(problem)
    except ModuleNotFoundError as problem:
        return "unscorable", f"the tests need {problem.name}, which is not in the standard library"
    except (SystemExit, KeyboardInterrupt) as problem:
        return "unscorable", f"the tests end themselves: {type(problem).__name__}"
    except AssertionError as problem:
        return "wrong", f"test failed{_line(problem)}: {problem}"
    except Exception as problem:
        return "wrong", f"{type(problem).__name__}{_line(problem)}: {problem}"


def _line(problem: BaseException) -> str:
    place, found = problem.__traceback__, ""
    while place:
        if place.tb_frame.f_code.co_filename == "tests.py":
            found = f" in line {place.tb_lineno}"
        place = place.tb_next
    return found


def _run(program: "Program", tree: ast.Module, entry_point: str | None) -> tuple[str, str]:
    counted = [0]

    def count() -> None:
        counted[0] += 1

    namespace: dict[str, Any] = {"__name__": "tests", _COUNT: count}
    defined = _defined(tree)
    namespace.update(_given(program, tree, defined))
    sys.modules["solution"] = _Solution(program, defined)
    exec(compile(_Counting().visit(tree), "tests.py", "exec"), namespace)
    for name, value in list(namespace.items()):
        if name.startswith("test") and isinstance(value, types.FunctionType) and not value.__code__.co_argcount:
            value()
        elif "unittest" in sys.modules and isinstance(value, type):  # importing it takes longer than most tests
            counted[0] += _run_cases(value)
    check = namespace.get("check")
    if not counted[0] and isinstance(check, types.FunctionType):
        check(program.get(entry_point or _only_function(program)))
    if not counted[0]:
        return "unscorable", "no test was run"
    return "correct", ""


def _run_cases(cases: type) -> int:
    import unittest

    if not issubclass(cases, unittest.TestCase):
        return 0
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(cases).run(result)
    for _, text in result.failures + result.errors:
        raise AssertionError(text.strip().rpartition("\n")[2])
    if result.unexpectedSuccesses:
        raise AssertionError("a test that must fail passes")
    return result.testsRun - len(result.skipped)


def _only_function(program: "Program") -> str:
    if len(program.functions) != 1:
        raise Unsupported(
            f"the tests define check(candidate) and do not say what the candidate is; the program has "
            f"{len(program.functions)} functions: give `entry_point` in the gold"
        )
    return program.functions[0]


class _Counting(ast.NodeTransformer):
    """Tests in which no assert is reached would pass anything: count the ones that are."""

    def visit_Assert(self, node: ast.Assert) -> list[ast.stmt]:
        call = ast.Expr(ast.Call(ast.Name(_COUNT, ast.Load()), [], []))
        return [ast.fix_missing_locations(ast.copy_location(call, node)), node]


def _defined(tree: ast.Module) -> set[str]:
    """Names that the tests assign, define or import; those of a star import are not known here."""
    defined = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            defined.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined.add(node.name)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, ast.alias):
            defined.add((node.asname or node.name).partition(".")[0])
    return defined


def _given(program: "Program", tree: ast.Module, defined: set[str]) -> Iterator[tuple[str, Any]]:
    """What the tests use and do not define."""
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    attributes = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    bare = {node.id for node in names if id(node) not in attributes}
    used = {node.id for node in names} - defined
    own = {name for name in used if not hasattr(builtins, name)}
    for name in sorted(own):
        if name in sys.stdlib_module_names and name not in bare:
            yield name, importlib.import_module(name)
        elif name in program.names:
            yield name, program.get(name)
    if not own and not defined:
        yield from ((name, program.get(name)) for name in sorted(used & set(program.functions)))


class _Solution(types.ModuleType):
    """`from solution import …` in tests; by `*` nothing that is built in or that the tests define or import."""

    def __init__(self, program: "Program", defined: set[str]) -> None:
        super().__init__("solution")
        self.__all__ = [name for name in program.names if not hasattr(builtins, name) and name not in defined]
        self.__dict__["_program"] = program

    def __getattr__(self, name: str) -> Any:
        program = self.__dict__["_program"]
        if name not in program.names:
            raise AttributeError(f"the program does not define {name}")
        return program.get(name)


class Program:
    """The other end of the channel. Reading its answers raises Gone, whatever it sends."""

    def __init__(self, channel: int) -> None:
        self.channel = channel
        first = self._receive()
        try:
            self.names = [name for name in map(str, first["names"]) if not name.startswith("__")]
            self.functions = [str(name) for name in first["functions"]]
        except (KeyError, TypeError):
            raise Gone("the program's first message is none") from None

    def get(self, name: str) -> Any:
        return self.ask("get", name)["value"]

    def ask(self, *request: Any) -> dict[str, Any]:
        """The decoded answer; raises what the program raised."""
        try:
            send(self.channel, request)
        except OSError:
            raise Gone("the program ended before all tests were run") from None
        answer = self._receive()
        try:
            return {key: decode(value, self._remote) for key, value in answer.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as problem:
            raise Gone(f"the program sent what is no answer: {problem}") from None

    def _remote(self, number: int, kind: str, own_equality: bool) -> "Remote":
        return Remote(self, number, str(kind), bool(own_equality))

    def _receive(self) -> dict[str, Any]:
        try:
            answer = receive(self.channel)
        except (EOFError, OSError):
            raise Gone("the program ended before all tests were run") from None
        except (ValueError, RecursionError) as problem:
            raise Gone(f"the program sent what is no answer: {problem}") from None
        if not isinstance(answer, dict):
            raise Gone("the program sent what is no answer")
        if "raised" in answer:
            _raise_here(str(answer["raised"]), str(answer.get("text")), answer.get("missing"))
        return answer


def _raise_here(name: str, text: str, missing: Any) -> NoReturn:
    if missing and str(missing).partition(".")[0] not in sys.stdlib_module_names:
        raise Unsupported(f"the program needs the module {missing}, which is not in the standard library")
    kind = None if name in _NEVER_HERE else getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            problem = kind(text)
        except TypeError:  # such as UnicodeDecodeError, which takes five arguments
            raise RemoteError(f"{name}: {text}") from None
        raise problem
    raise RemoteError(f"{name}: {text}")


class Remote:
    """An object of the program: it can be called, read and iterated; it cannot decide whether it is right."""

    def __init__(self, program: Program, number: int, kind: str, own_equality: bool) -> None:
        vars(self).update(_program=program, _number=number, _kind=kind, _own_equality=own_equality)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        answer = self._program.ask("call", self._number, encode(arguments, _handle), encode(named, _handle))
        try:
            changed, changed_named = answer["arguments"]
            for before, after in zip([*arguments, *named.values()], [*changed, *changed_named.values()], strict=True):
                _update(before, after)
            return answer["value"]
        except (KeyError, ValueError, TypeError, AttributeError) as problem:
            raise Gone(f"the program sent what is no answer: {problem}") from None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._program.ask("attribute", self._number, name)["value"]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._program.ask("items", self._number)["value"])

    def _special(self, name: str, *arguments: Any) -> Any:
        try:
            method = self._program.ask("attribute", self._number, name)["value"]
        except AttributeError as problem:  # what a missing special method means to `len`, `list` and the like
            raise TypeError(str(problem)) from None
        return method(*arguments)

    def __len__(self) -> int:
        return int(self._special("__len__"))

    def __getitem__(self, key: Any) -> Any:
        return self._special("__getitem__", key)

    def __str__(self) -> str:
        return str(self._special("__str__"))

    def __eq__(self, other: object) -> bool:
        if self._own_equality:
            self._undecided()
        return isinstance(other, Remote) and other._number == self._number

    def __hash__(self) -> int:
        raise Unsupported(self._cannot_say())

    def __setattr__(self, name: str, value: Any) -> None:
        self._program.ask("set", self._number, name, encode(value, _handle))

    def _undecided(self, *_: Any) -> NoReturn:
        raise Unsupported(self._cannot_say())

    def _cannot_say(self) -> str:
        return f"the tests use a {self._kind} of the program in a way that only the program could answer"

    __bool__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __float__ = __int__ = _undecided
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __abs__ = __round__ = __index__ = _undecided


def _handle(value: Any) -> Any:
    if isinstance(value, Remote):
        return ["h", value._number]
    raise Unsupported(f"the tests hand the program a {type(value).__name__}, which cannot leave their process")


def _update(before: Any, after: Any) -> None:
    """Make a list, set, dictionary or bytearray of the tests what the program made of it."""
    if type(before) is not type(after):
        return
    if isinstance(before, (list, bytearray)):
        before[:] = after
    elif isinstance(before, (set, dict)):
        before.clear()
        before.update(after)
