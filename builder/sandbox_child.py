"""The processes inside the sandbox: `builder.sandbox` starts them. Nothing but the standard library is there.

Three roles: `script` runs the program with its standard input and output; `serve` runs it and answers calls of its
functions (`builder.sandbox_calls`); `evaluate` runs the tests of a gold against `serve` in a process of its own
(`builder.sandbox_tests`). Every role first puts the kernel's limits on itself; they cannot be lifted again.
"""

import ctypes
import errno
import os
import struct
import sys
from typing import Final

CANNOT_LIMIT: Final = 85
"""Exit status: a limit could not be set, so the program was not run."""

MODULE_MISSING: Final = 86
"""Exit status: the program needs a module that is not in the standard library."""

_FORBIDDEN: Final = (  # call numbers on x86_64, and on aarch64, which lacks some
    ((57, 58, 59, 322), (221, 281)),  # fork, vfork, execve, execveat
    ((41,), (198,)),  # socket
    ((101, 310, 311), (117, 270, 271)),  # ptrace, process_vm_readv, process_vm_writev
    ((272, 308, 165, 166, 155, 161), (97, 268, 40, 39, 41, 51)),  # unshare, setns, (u)mount, pivot_root, chroot
    ((248, 249, 250), (217, 218, 219)),  # add_key, request_key, keyctl
    ((321, 298, 323, 425), (280, 241, 282, 425)),  # bpf, perf_event_open, userfaultfd, io_uring_setup
    # shmget, semget, msgget, mq_open, memfd_create, memfd_secret: memory that no limit of the process counts
    ((29, 64, 68, 240, 319, 447), (194, 190, 186, 180, 279, 447)),
    # chmod, fchmod(at, at2), (l, f)setxattr(at): /dev/null is the host's, and root owns it
    ((90, 91, 268, 452, 188, 189, 190, 463), (52, 53, 452, 5, 6, 7, 463)),
)
_MACHINES: Final = {"x86_64": (0, 0xC000003E, 56, 157), "aarch64": (1, 0xC00000B7, 220, 167)}
"""Column of `_FORBIDDEN`, audit number, clone, prctl."""
_CLONE3: Final = 435
_SET_PARENT_DEATH_SIGNAL: Final = 1
_CLONE_THREAD: Final = 0x10000


def main() -> None:
    """`sandbox_child ROLE PROGRAM NAME=VALUE…`: a role, the path of the program, the limits."""
    role, program, *given = sys.argv[1:]
    limits = {name: int(value) for name, _, value in (limit.partition("=") for limit in given)}
    sys.argv[:] = ["program.py"]
    if os.getpgrp() != os.getpid():  # bubblewrap outside is of this group: no signal to the group shall reach it
        os.setsid()
    try:
        limit_process(limits)
        forbid_calls()
    except (OSError, ValueError, KeyError) as problem:
        os.write(2, f"{problem}\n".encode())
        os._exit(CANNOT_LIMIT)
    if role == "evaluate":
        from builder.sandbox_tests import evaluate

        evaluate()
    elif role == "serve":
        from builder.sandbox_calls import serve

        serve(program)
    else:
        run_script(program)


def limit_process(limits: dict[str, int]) -> None:
    """Resource limits of this process, hard and soft: past the one on processor time the kernel kills it."""
    import resource  # not on Windows, where the rest of builder must still import this module

    for name, value in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def forbid_calls() -> None:
    """A seccomp filter: no new processes (threads are allowed), no other program, no sockets, namespaces or tracing.

    Nor a life after the one who started it, nor memory outside of the process. RLIMIT_NPROC alone would not hold a fork
    bomb where builder runs as root: the kernel exempts root. Raises OSError where the kernel has no filters, KeyError
    on a processor whose call numbers are not known here.
    """
    column, number, clone, prctl = _MACHINES[os.uname().machine]
    load, equal, above, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, deny, no_such_call = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
    steps = [(load, 0, 0, 4), (equal, 1, 0, number), (give, 0, 0, 0x80000000), (load, 0, 0, 0)]
    steps += [(above, 0, 1, 0x40000000), (give, 0, 0, deny)]  # other call tables of the same processor
    for call in [call for columns in _FORBIDDEN for call in columns[column]]:
        steps += [(equal, 0, 1, call), (give, 0, 0, deny)]
    steps += [(equal, 0, 1, _CLONE3), (give, 0, 0, no_such_call)]  # its flags lie in memory; libc then uses clone
    steps += [(equal, 0, 4, prctl), (load, 0, 0, 16), (equal, 0, 1, _SET_PARENT_DEATH_SIGNAL)]
    steps += [(give, 0, 0, deny), (give, 0, 0, allow), (equal, 1, 0, clone), (give, 0, 0, allow)]
    steps += [(load, 0, 0, 16), (any_bit, 0, 1, _CLONE_THREAD), (give, 0, 0, allow), (give, 0, 0, deny)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    filters = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code)))
    library = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_seccomp, filter_mode = 38, 22, 2
    zero = ctypes.c_ulong(0)
    for arguments in (
        (no_new_privileges, ctypes.c_ulong(1), zero, zero, zero),
        (set_seccomp, ctypes.c_ulong(filter_mode), ctypes.c_void_p(ctypes.addressof(filters)), zero, zero),
    ):
        if library.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "the kernel refuses to filter system calls")


def run_script(program: str) -> None:
    """Run the program as `__main__`, as `python program.py` would."""
    import builtins
    import types

    main_module = types.ModuleType("__main__")
    main_module.__file__ = program
    sys.modules["__main__"] = main_module
    with open(program, "rb") as file:  # noqa: PTH123 (pathlib would cost the sandbox 5 ms of imports)
        source = file.read()
    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # `site`, which defines them, is not loaded
    try:
        exec(compile(source, "program.py", "exec"), vars(main_module))
    except ModuleNotFoundError as problem:
        if (problem.name or "").partition(".")[0] not in sys.stdlib_module_names:
            os._exit(MODULE_MISSING)
        raise


if __name__ == "__main__":
    main()
