"""How many files a process may have open: each request in flight is a connection, and each connection is one."""

import resource
from typing import Final

from builder.errors import UsageError

_OTHERS: Final = 128
"""Files that are no connection: journal, parts, standard streams, the event loop. A run has about a dozen of them."""


def allow_connections(number: int) -> None:
    """Raise the process's soft limit on open files where `number` connections need it; children inherit it.

    Shells and service managers start processes with 1,024, which is no wish of anybody: the hard limit is. Raises
    UsageError where that is too low as well, before anything is sent.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number + _OTHERS
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard == resource.RLIM_INFINITY or hard >= wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):  # macOS calls the hard limit infinite and bears less
            hard = soft
        else:
            return
    raise UsageError(
        f"The endpoints' max_in_flight add up to {number:,} connections, which with {_OTHERS} other files need "
        f"{wanted:,} open files; this system allows the process {hard:,}. Nothing was sent. Lower max_in_flight to "
        f"{max(1, hard - _OTHERS):,} in all, or raise the hard limit (LimitNOFILE of the service, or limits.conf)."
    )
