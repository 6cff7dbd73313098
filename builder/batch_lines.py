"""Lines of a batch's files: a request as it is sent, a result as it comes back. Pure functions on bytes."""

import json
import re
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from builder.requests import Request
from builder.wire import Wire

_CUSTOM_ID: Final = re.compile(rb'"custom_id"\s*:\s*"([0-9a-f]{64})"')
_WORTH_A_RETRY: Final = frozenset({408, 409, 425, 429})
_NO_MONEY: Final = "insufficient_quota"


def request_line(wire: Wire, request: Request, *, token_ids: bool) -> bytes:
    """One line of the input file: the body that goes online, under the request's key."""
    payload = wire.payload(request, token_ids=token_ids)
    given = {"custom_id": request.key, "method": "POST", "url": f"/v1{wire.route}", "body": payload}
    return msgspec.json.encode(given) + b"\n"


@dataclass(frozen=True)
class Result:
    """What a line says of one request: the body of a reply, or why there is none.

    `is_final`: the same request would be refused again; `no_money`: so would every other. `is_torn`: the line is no
    JSON, and its body is the line itself.
    """

    key: str
    body: bytes | None = None
    error: str = ""
    is_final: bool = False
    no_money: bool = False
    is_torn: bool = False


class _Response(msgspec.Struct):
    status_code: int | None = None
    body: msgspec.Raw = msgspec.Raw(b"null")


class _Line(msgspec.Struct):
    custom_id: str
    response: _Response | None = None
    error: Any = None


_decoder: Final = msgspec.json.Decoder(_Line)


def read_line(line: bytes) -> Result | None:
    """The result in a line, None where it names no request at all. The body's bytes stay as the endpoint wrote them."""
    try:
        given = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _read_odd(line)
    response = given.response
    if response is None:
        return _without_body(given.custom_id, None, given.error)
    return _result(given.custom_id, response.status_code, bytes(response.body), given.error)


def _read_odd(line: bytes) -> Result | None:
    """A line that is no strict JSON: bare NaN, as vLLM and SGLang write it, or torn."""
    try:
        given = json.loads(line)
        key, response = str(given["custom_id"]), given.get("response") or {}
        status, body = response.get("status_code"), response.get("body")
        return _result(key, status if isinstance(status, int) else None, json.dumps(body).encode(), given.get("error"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        named = _CUSTOM_ID.search(line)
    if named is None:
        return None
    return Result(named[1].decode(), line, "a line of the batch's output is no JSON", is_torn=True)


def _result(key: str, status: int | None, body: bytes, error: Any) -> Result:
    if (status == 200 or (status is None and not error)) and body != b"null":
        return Result(key, body)
    return _without_body(key, status, error or body.decode(errors="replace"))


def _without_body(key: str, status: int | None, error: Any) -> Result:
    facts = error.get("error", error) if isinstance(error, dict) else error
    code = str(facts.get("code")) if isinstance(facts, dict) else ""
    said = error if isinstance(error, str) else json.dumps(error, ensure_ascii=False)
    told = f"the batch answered {status or code or 'without a reply'}: {' '.join(said.split())[:300]}"
    is_final = status is not None and 400 <= status < 500 and status not in _WORTH_A_RETRY
    no_money = _NO_MONEY in (code, said) or (status in (402, 429) and f'"{_NO_MONEY}"' in said)
    return Result(key, error=told, is_final=is_final and not no_money, no_money=no_money)
