"""The processes inside the sandbox: `builder.sandbox` starts them. Nothing but the standard library is there.

Three roles: `script` runs the program with its standard input and output; `serve` runs it and answers calls of its
functions (`builder.sandbox_calls`); `evaluate` runs the tests of a gold against `serve` in a process of its own
(`builder.sandbox_tests`). Every role first puts the kernel's limits on itself; they cannot be lifted again.
"""

import ctypes
import errno
import json
import os
import struct
import sys
from typing import Final

CANNOT_LIMIT: Final = 85
"""Exit status: a limit could not be set, so the program was not run."""

MODULE_MISSING: Final = 86
"""Exit status: the program needs a module that is not in the standard library."""

_FORBIDDEN: Final = {
    # fork, vfork; socket; ptrace, process_vm_readv/writev; unshare, setns, mount, umount2, pivot_root, chroot;
    # add_key, request_key, keyctl; bpf, perf_event_open, userfaultfd, io_uring_setup
    "x86_64": (57, 58, 41, 101, 310, 311, 272, 308, 165, 166, 155, 161, 248, 249, 250, 321, 298, 323, 425),
    "aarch64": (198, 117, 270, 271, 97, 268, 40, 39, 41, 51, 217, 218, 219, 280, 241, 282, 425),
}
_ARCHITECTURE: Final = {"x86_64": (0xC000003E, 56), "aarch64": (0xC00000B7, 220)}  # audit number, clone
_CLONE3: Final = 435
_CLONE_THREAD: Final = 0x10000


def main() -> None:
    """`sandbox_child ROLE PROGRAM LIMITS`: a role, the path of the program, the limits as JSON."""
    role, program, limits = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    sys.argv[:] = ["program.py"]
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
    """Resource limits of this process, hard and soft; for processor time SIGXCPU first and SIGKILL a second later."""
    import resource  # not on Windows, where the rest of builder must still import this module

    for name, value in limits.items():
        soft, hard = value, value + (1 if name == "CPU" else 0)
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (soft, hard))


def forbid_calls() -> None:
    """A seccomp filter: no new processes (threads are allowed), no sockets, no namespaces, no tracing.

    RLIMIT_NPROC alone would not hold a fork bomb where builder runs as root: the kernel exempts root. Raises OSError
    where the kernel has no filters, KeyError on a processor whose call numbers are not known here.
    """
    machine = os.uname().machine
    number, clone = _ARCHITECTURE[machine]
    load, equal, above, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, deny, no_such_call = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
    steps = [(load, 0, 0, 4), (equal, 1, 0, number), (give, 0, 0, 0x80000000), (load, 0, 0, 0)]
    steps += [(above, 0, 1, 0x40000000), (give, 0, 0, deny)]  # other call tables of the same processor
    for call in _FORBIDDEN[machine]:
        steps += [(equal, 0, 1, call), (give, 0, 0, deny)]
    steps += [(equal, 0, 1, _CLONE3), (give, 0, 0, no_such_call)]  # its flags lie in memory; libc then uses clone
    steps += [(equal, 1, 0, clone), (give, 0, 0, allow)]
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
