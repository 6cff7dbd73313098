"""What runs on a node of a Ray cluster: one step of one shard, exactly as `--shard I/N` runs it on a machine.

Nothing heavy is imported before the step begins, and nothing of Ray at all: keys and the recipe come with the call, all
else from the run directory, which every node has to see.
"""

import os
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any, Final

from builder import errors
from builder.claim import ShardBusy
from builder.claim_record import read_record
from builder.console import Meter, Reporter
from builder.identity import KEY_FORMAT
from builder.live import Live
from builder.store import Run
from builder.tally import Tally

if TYPE_CHECKING:
    from builder.candidate import StudentModel
    from builder.config import Recipe

SEEN_S: Final = 10.0
"""A network disk may show a new file this much later, seconds."""
BUSY_S: Final = 120.0
"""A shard that was lost is free once its process or its host is known to be gone: the lease of an NFS lock is 90 s."""
_WATCH_S: Final = 0.5


@dataclass(frozen=True)
class Job:
    """One step on all shards: what a worker needs to know. Paths are the coordinator's, absolute.

    `recipe` is the resolved one. `coordinator` is the file of the coordinator's claim in the run directory and `nonce`
    what it holds: who reads it sees the same directory, and once it is gone the work ends. `keys` are variables of the
    environment by name; they are in no repr.
    """

    step: str
    shards: int
    recipe: Mapping[str, Any]
    recipe_dir: str
    root: str
    folder: str
    coordinator: str
    nonce: str
    code: str
    limit: int | None = None
    max_cost: float | None = None
    max_tokens: int | None = None
    allow_code: bool = False
    options: Mapping[str, bool] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass
class Report:
    """What became of one shard: `results` as `--json` has them, warnings, and why it ended if not well.

    `failure` is the name of an error class in `builder.errors` (None: not one of ours) with its message.
    """

    shard: int
    node: str
    pid: int
    results: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    failure: tuple[str | None, str] | None = None
    is_interrupted: bool = False


def code_version() -> str:
    """What must be the same on all nodes: the package, and the version of the request key, which decides what is paid
    for already."""
    return f"tempered {version('tempered')}, request keys {KEY_FORMAT}"


def work(job: Job, shard: int, tries: int, student: "HeldStudent | None" = None) -> Report:
    """Do the step of one shard. Errors are told in the report: one shard's must not end the others.

    After a loss (`tries` > 0) the shard is waited for, as long as its former process still holds it.
    """
    report = Report(shard, gethostname(), os.getpid())
    try:
        _require_fit(job)
        with _environment(job), _stopping(job):
            _until_free(job, report, tries, student)
    except KeyboardInterrupt:
        report.is_interrupted = True
    except errors.BuilderError as error:
        # What a step raises after its result is for the coordinator to decide, on the results of all shards.
        if not (job.step in ("generate", "score") and job.step in report.results):
            report.failure = (_known_class(error), str(error))
    except Exception as error:
        report.failure = (None, f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    return report


class Scorer:
    """For a Ray actor: holds the student between shards."""

    def __init__(self) -> None:
        self.student = HeldStudent()

    def hello(self) -> str:
        """Answered once it runs; the devices that Ray gave it."""
        return os.environ.get("CUDA_VISIBLE_DEVICES", "")

    def work(self, job: Job, shard: int, tries: int) -> Report:
        """As `work`."""
        return work(job, shard, tries, self.student)


class HeldStudent:
    """The student of a recipe, loaded when the first reply needs it, and once."""

    recipe: "Recipe | None" = None

    @cached_property
    def _model(self) -> "StudentModel":
        from builder.score import _loaded

        assert self.recipe is not None
        return _loaded(self.recipe.require_student())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _until_free(job: Job, report: Report, tries: int, student: HeldStudent | None) -> None:
    until = time.monotonic() + BUSY_S
    while True:
        try:
            return _step(job, report, student)
        except ShardBusy:
            if not tries or time.monotonic() > until:
                raise
        time.sleep(1)


def _step(job: Job, report: Report, student: HeldStudent | None) -> None:
    from builder.config import Recipe
    from builder.pipeline import Limits, Steps

    run, recipe = Run(Path(job.root)), Recipe.model_validate(job.recipe)
    reporter = _Kept(run, report)
    limits = Limits(job.max_cost, job.max_tokens)
    shard = (report.shard, job.shards)
    if student is not None:
        student.recipe = recipe
    held: Any = student
    steps = Steps(run, recipe, Path(job.recipe_dir), reporter, shard, job.limit, limits, job.allow_code, held)
    getattr(steps, job.step)(**job.options)


class _Kept(Reporter):
    """Keeps results and warnings for the report, and progress in the run directory, where the coordinator reads it."""

    def __init__(self, run: Run, report: Report) -> None:
        super().__init__(quiet=True)
        self._run, self._report = run, report

    def warn(self, text: str) -> None:
        self._report.warnings.append(text)

    def result(self, values: Mapping[str, Any]) -> None:
        self._report.results.update(values)

    @contextmanager
    def progress(self, what: str, total: int | None = None) -> Iterator[Meter]:
        live = Live.of(self._run, what, self._report.shard)
        try:
            yield _Seen(live)
        finally:
            live.end()


class _Seen(Meter):
    def __init__(self, live: Live) -> None:
        self._live = live

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        if not note:  # a step with a note of its own keeps a tally in the run directory itself
            self._live.update(Tally(total=total or 0, stored_before=done))

    def step(self, what: str, done: int, total: int | None = None) -> None:
        self.update(done, total)


def _require_fit(job: Job) -> None:
    """Raise ClusterError where this node has other code, or does not see what the coordinator sees."""
    host = gethostname()
    if job.code != code_version():
        raise errors.ClusterError(
            f"node {host} has {code_version()}, the coordinator has {job.code}. Shards of two versions could pay twice "
            "or make rows of two kinds. Install one version on all nodes."
        )
    until = time.monotonic() + SEEN_S
    while not _stands(job):
        if time.monotonic() > until:
            raise errors.ClusterError(
                f"node {host} does not see the run directory {job.root} as the coordinator does: {job.coordinator} is "
                "not there or another. All nodes need the run directory at one path, on one shared disk. Mount it "
                "there, or give another with --run."
            )
        time.sleep(_WATCH_S)
    with suppress(OSError):  # where the folder is not there, a recipe with relative paths says which file is missing
        os.chdir(job.folder)


def _stands(job: Job) -> bool:
    record = read_record(Path(job.coordinator))
    return record is not None and record.nonce == job.nonce


@contextmanager
def _stopping(job: Job) -> Iterator[None]:
    """While inside, this thread gets what Ctrl-C gives once the coordinator's claim no longer stands."""
    ended = threading.Event()

    def watch() -> None:
        import _thread

        gone = 0
        while not ended.wait(_WATCH_S):
            gone = 0 if _stands(job) else gone + 1
            if gone == 2:  # once may be the middle of a write
                return _thread.interrupt_main()

    watcher = threading.Thread(target=watch, name="coordinator", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


@contextmanager
def _environment(job: Job) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in job.keys}
    os.environ.update(job.keys)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _known_class(error: errors.BuilderError) -> str:
    """The nearest class that `builder.errors` has."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
