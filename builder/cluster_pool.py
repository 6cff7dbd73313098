"""Shards over the nodes of a Ray cluster: who works on what, and what is done about workers and nodes that die."""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from builder.cluster_worker import Job, Report, Scorer, work
from builder.errors import ClusterError

MAX_LOST: Final = 3
"""A shard whose workers die this often is given up: the third time it is hardly the node."""
_EVERY_S: Final = 1.0


@dataclass
class Pool:
    """One step of all shards: as Ray tasks, or with `actors` as calls of so many actors, each holding its student.

    `gpus` of each actor are Ray's to place. Every task and actor takes a CPU. A shard whose worker or node dies is done
    again, which is safe: it goes on from what is stored. `reports` has a shard's report once it ended, `lost` a line
    for each loss, `failed` what is no error of ours.
    """

    job: Job
    actors: int = 0
    gpus: int = 0
    reports: dict[int, Report] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    failed: BaseException | None = None
    _queue: deque[int] = field(default_factory=deque)
    _working: dict[Any, tuple[int | None, Any]] = field(default_factory=dict)
    """Shard and actor by the reference of their result; no shard: the actor comes up."""
    _losses: Counter[int | None] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        import ray

        self._queue.extend(range(self.job.shards))
        spread: dict[str, Any] = {"num_cpus": 1, "scheduling_strategy": "SPREAD"}
        self._task: Any = ray.remote(**spread, max_retries=0)(work)
        self._actor: Any = ray.remote(**spread, num_gpus=self.gpus, max_restarts=0)(Scorer)
        self._job: Any = ray.put(self.job)  # in the object store alone: what an actor is made with, the head node keeps

    @property
    def running(self) -> list[int]:
        """Shards that are being worked on, or wait for a place."""
        return [shard for shard, _ in self._working.values() if shard is not None]

    def run(self, progress: Callable[[], None]) -> None:
        """Do all shards; after an error those that run end first, and no other begins.

        Raises ClusterError for a shard that is lost too often, after the others ended.
        """
        while self._queue or self.running:
            self._start()
            self._look(progress)
        for shard, actor in self._working.values():
            assert shard is None  # it waited for a place that it no longer needs
            _kill(actor)

    def drain(self, progress: Callable[[], None]) -> None:
        """Wait for what runs; the coordinator's claim is gone, so that it ends as after Ctrl-C."""
        self._queue.clear()
        while self.running:
            self._look(progress)

    def _start(self) -> None:
        import ray  # noqa: F401

        if not self.actors:
            while self._queue:
                shard = self._queue.popleft()
                self._working[self._task.remote(self._job, shard, self._losses[shard])] = (shard, None)
        while self._queue and len(self._working) < min(self.actors, len(self._queue) + len(self.running)):
            actor = self._actor.remote()
            self._working[actor.hello.remote()] = (None, actor)

    def _look(self, progress: Callable[[], None]) -> None:
        import ray

        ended, _ = ray.wait(list(self._working), num_returns=1, timeout=_EVERY_S)
        for reference in ended:
            shard, actor = self._working.pop(reference)
            try:
                report = ray.get(reference)
            except ray.exceptions.RayTaskError as error:  # a node that cannot even begin, such as one without tempered
                self._fail(error)
                _kill(actor)
            except ray.exceptions.RayError as error:
                _kill(actor)
                self._lose(shard, error)
            else:
                if shard is not None:
                    self._end(report)
                self._go_on(actor)
        progress()

    def _go_on(self, actor: Any) -> None:
        """Give the actor another shard; without one its place is for others."""
        if actor is not None and self._queue:
            shard = self._queue.popleft()
            self._working[actor.work.remote(self._job, shard, self._losses[shard])] = (shard, actor)
        else:
            _kill(actor)

    def _end(self, report: Report) -> None:
        self.reports[report.shard] = report
        if report.failure is not None or report.is_interrupted:
            self._queue.clear()

    def _lose(self, shard: int | None, error: BaseException) -> None:
        self._losses[shard] += 1
        name = f"shard {shard} of {self.job.shards}" if shard is not None else "a worker without a shard"
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        self.lost.append(f"{name}: {reason}")
        if self._losses[shard] < MAX_LOST * (1 if shard is not None else max(1, self.actors)):
            if shard is not None:
                self._queue.append(shard)
            return
        self._fail(
            ClusterError(
                f"{self.job.step}: {name} was lost {self._losses[shard]} times; last: {reason} What was stored is "
                "kept. See Ray's logs on that node (often memory: ray status, dmesg), then rerun the same command."
            )
        )

    def _fail(self, error: BaseException) -> None:
        self.failed = self.failed or error
        self._queue.clear()


def _kill(actor: Any) -> None:
    if actor is not None:
        import ray

        ray.kill(actor)
