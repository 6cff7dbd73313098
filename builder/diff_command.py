"""`builder diff A B`, and its exit codes: 0 same, 1 different, 2 usage, 3 failed."""

import errno
import traceback
from typing import Annotated, Final

import typer

from builder.errors import UsageError
from builder.options import DebugOption, JsonOption, QuietOption, messages

_DIFFERENT: Final = 1
_FAILED: Final = 3


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A release: its folder, RUN@vN, or org/name@revision.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The release to compare with it.")],
    sample: Annotated[int, typer.Option("--sample", min=0, help="Rows to quote of those added, and removed.")] = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Two releases, here or published: rows, schema, shifts, schedule, funnel, recipe, SQL, bytes to download. Exit
    code 0: the same, 1: different, 2: no such release can be meant, 3: failed."""
    try:
        with messages(debug):
            is_same = compared(a, b, sample, as_json=as_json, quiet=quiet)
    except typer.Exit as ended:
        # 1 would say that they differ
        raise typer.Exit(_FAILED if ended.exit_code == 1 else ended.exit_code) from None
    except Exception as error:  # let through by --debug, or a closed pipe, which Typer ends quietly
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            raise
        traceback.print_exc()
        raise typer.Exit(UsageError.exit_code if isinstance(error, UsageError) else _FAILED) from None
    raise typer.Exit(0 if is_same else _DIFFERENT)


def compared(a: str, b: str, sample: int, *, as_json: bool, quiet: bool) -> bool:
    """Compare, print; whether they are the same. Raises as `builder.diff.diff`."""
    from builder.console import Reporter
    from builder.diff import diff as compare
    from builder.show_diff import show_diff

    reporter = Reporter(as_json=as_json, quiet=quiet)
    with reporter.progress("diff") as meter:
        found = compare(a, b, sample, lambda done, total, _: meter.update(done, total))
    show_diff(reporter, found)
    reporter.finish()
    return found.is_same
