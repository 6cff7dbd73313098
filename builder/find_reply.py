"""Which reply of a run somebody means by an id, or by the beginning of one."""

from typing import Any, Final

import duckdb

from builder.errors import UsageError
from builder.store import Run

_LISTED: Final = 6


def find_reply(run: Run, given: str) -> str:
    """The id that `given` is or begins. Raises UsageError with the nearest id, or with what a prompt's replies are."""
    found = [identity for (identity,) in rows_of(
        run, "select response_id from stg_responses where starts_with(response_id, ?) order by (response_id <> ?), "
        f"response_id limit {_LISTED}", given, given)]  # fmt: skip
    if found and (len(found) == 1 or found[0] == given):
        return str(found[0])
    if found:
        more = " …" if len(found) == _LISTED else ""
        raise UsageError(f"{given!r} begins several ids: {', '.join(found[: _LISTED - 1])}{more}. Give more of it.")
    replies = [f"{identity} ({role})" for identity, role in rows_of(
        run, "select response_id, role from stg_responses where prompt_id = ? order by temperature, response_id "
        f"limit {_LISTED}", given)]  # fmt: skip
    if replies:
        raise UsageError(f"{given!r} is a prompt. Replies to it: {', '.join(replies)}. Explain one of them.")
    nearest = rows_of(
        run,
        "select response_id from stg_responses where levenshtein(response_id, ?) <= length(response_id) // 4 "
        "order by levenshtein(response_id, ?), response_id limit 1",
        given,
        given,
    )
    meant = f"; did you mean {nearest[0][0]!r}?" if nearest else "."
    raise UsageError(
        f'This run holds no reply {given!r}{meant} To list ids: builder sql RECIPE -c "select response_id, role, '
        'temperature from stg_responses order by all limit 20".'
    )


def rows_of(run: Run, sql: str, *values: str) -> list[tuple[Any, ...]]:
    """Rows of our own SQL; what a user gives is a value of it, never a part."""
    with duckdb.connect(str(run.database), read_only=True) as connection:
        return connection.execute(sql, list(values)).fetchall()
