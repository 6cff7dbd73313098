"""Calls between two processes that do not trust each other: the program on one side, the tests of a gold on the other.

Only plain data crosses: None, bool, int, float, complex, str, bytes, lists, tuples, sets, dictionaries and the names of
built-in types, as JSON in frames; subclasses cross as what they derive from. Any other object stays in the program and
crosses as a handle. So what is compared is data: an `__eq__` of the program that is always true never runs where the
tests run.
"""

import builtins
import json
import os
import struct
import sys
import types
from collections.abc import Callable
from typing import Any, Final

LONGEST_FRAME: Final = 64 * 2**20
"""Bytes of one message; a longer one ends the conversation."""

_SEQUENCES: Final[tuple[tuple[type[Any], str], ...]] = ((list, "l"), (tuple, "t"), (set, "s"), (frozenset, "z"))
_MAKE: Final[dict[str, Callable[[Any], Any]]] = {"l": list, "t": tuple, "s": set, "z": frozenset}


def send(channel: int, message: Any) -> None:
    """Write one frame."""
    body = json.dumps(message).encode()
    data = memoryview(struct.pack("<I", len(body)) + body)
    while data:
        data = data[os.write(channel, data) :]


def receive(channel: int) -> Any:
    """Read one frame. Raises EOFError at the end, ValueError for what is no frame."""
    (length,) = struct.unpack("<I", _read(channel, 4))
    if length > LONGEST_FRAME:
        raise ValueError(f"a message of {length} bytes")
    return json.loads(_read(channel, length))


def _read(channel: int, length: int) -> bytes:
    parts = []
    while length:
        part = os.read(channel, min(length, 2**20))
        if not part:
            raise EOFError
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def encode(value: Any, handle: Callable[[Any], Any]) -> Any:  # noqa: PLR0911 (one line per type)
    """JSON for a value; `handle(value)` gives the JSON for what is no plain data, or raises."""
    if value is None or isinstance(value, (bool, float)):
        return float(value) if isinstance(value, float) else value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return ["i", hex(value)]  # decimal digits cost quadratic time
    if isinstance(value, complex):
        return ["c", value.real, value.imag]
    if isinstance(value, (bytes, bytearray)):
        return ["b" if isinstance(value, bytes) else "a", value.hex()]
    if isinstance(value, dict):
        return ["d", [[encode(key, handle), encode(item, handle)] for key, item in value.items()]]
    for kind, tag in _SEQUENCES:
        if isinstance(value, kind):
            return [tag, [encode(item, handle) for item in value]]
    if isinstance(value, type) and vars(builtins).get(name := str(value.__name__)) is value:
        return ["y", name]
    return handle(value)


def decode(data: Any, handle: Callable[..., Any]) -> Any:  # noqa: PLR0911 (one line per type)
    """The value for JSON of `encode`; `handle(*rest)` gives the value for a handle. Raises ValueError and the like."""
    if not isinstance(data, list):
        return data
    tag, *rest = data
    if tag in _MAKE:
        return _MAKE[tag](decode(item, handle) for item in rest[0])
    if tag == "d":
        return {decode(key, handle): decode(item, handle) for key, item in rest[0]}
    if tag == "i":
        return int(rest[0], 16)
    if tag == "c":
        return complex(*rest)
    if tag in ("b", "a"):
        return (bytes if tag == "b" else bytearray).fromhex(rest[0])
    if tag == "y" and isinstance(kind := getattr(builtins, str(rest[0])), type):
        return kind
    if tag == "h":
        return handle(*rest)
    raise ValueError(f"unknown tag {tag!r}")


def serve(program: str) -> None:
    """The program's process: run it as the module `solution`, then answer requests until the channel closes.

    The channel is standard input; the program gets empty input and nowhere to print.
    """
    channel = os.dup(0)
    for number in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
    vars(builtins).update(exit=sys.exit, quit=sys.exit)
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    try:
        exec(compile(_source(program), "solution.py", "exec"), vars(module))
    except BaseException as problem:  # SystemExit as well: what became of the program is for the tests to say
        send(channel, _raised(problem))
        return
    names = [name for name in vars(module) if not name.startswith("__")]
    functions = [
        name for name in names
        if isinstance(vars(module)[name], types.FunctionType) and vars(module)[name].__module__ == "solution"
    ]  # fmt: skip
    send(channel, {"names": names, "functions": functions})
    objects: list[Any] = []
    while True:
        try:
            request = receive(channel)
        except EOFError:
            return
        try:
            reply = _answer(module, objects, request)
        except BaseException as problem:
            reply = _raised(problem)
        send(channel, reply)


def _source(program: str) -> bytes:
    with open(program, "rb") as file:  # noqa: PTH123 (pathlib would cost the sandbox 5 ms of imports)
        return file.read()


def _answer(module: types.ModuleType, objects: list[Any], request: Any) -> dict[str, Any]:
    """`get NAME`, `attribute HANDLE NAME`, `set HANDLE NAME VALUE`, `items HANDLE`, `call HANDLE ARGUMENTS NAMED`.

    After a call the arguments go back too: a function may have changed the lists that it was given.
    """

    def handle(value: Any) -> Any:
        objects.append(value)
        return [
            "h",
            len(objects) - 1,
            type(value).__name__,
            any("__eq__" in vars(kind) for kind in type(value).__mro__[:-1]),
        ]

    def found(number: int) -> Any:
        return objects[number]

    what, *rest = request
    if what == "get":
        return {"value": encode(vars(module)[rest[0]], handle)}
    target = objects[rest[0]]
    if what == "attribute":
        return {"value": encode(getattr(target, rest[1]), handle)}
    if what == "set":
        setattr(target, rest[1], decode(rest[2], found))
        return {"value": None}
    if what == "items":
        return {"value": encode(list(target), handle)}
    arguments, named = decode(rest[1], found), decode(rest[2], found)
    value = target(*arguments, **named)
    return {"value": encode(value, handle), "arguments": encode([arguments, named], handle)}


def _raised(problem: BaseException) -> dict[str, Any]:
    try:
        text = str(problem)[:200]
    except BaseException:  # an exception of the program may not even print
        text = ""
    missing = getattr(problem, "name", None) if isinstance(problem, ModuleNotFoundError) else None
    return {"raised": type(problem).__name__, "text": text, "missing": missing}
