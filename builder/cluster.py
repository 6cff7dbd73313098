"""`--engine ray`: the steps of a run, with those that work prompt by prompt spread over a Ray cluster.

This process only coordinates: it cuts the prompts into shards, gives them to workers (`builder.cluster_worker`), shows
one progress and one result for all, and does what needs the whole run itself.
"""

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder import errors, journal
from builder.claim import claimed
from builder.cluster_pool import Pool
from builder.cluster_results import sum_of, tally_of, tally_of_done
from builder.cluster_worker import Job, Report, code_version
from builder.console import Meter, Reporter
from builder.errors import BuilderError, ClusterError, UsageError
from builder.live import Live
from builder.pipeline import Steps
from builder.show import note, show_generated, show_resampled, show_scored, show_verified
from builder.tally import Tally

if TYPE_CHECKING:
    from builder.prompts import Prompts
    from builder.score import ScoreResult
    from builder.verify import VerifyResult

COORDINATOR = "coordinator"
"""Name of the claim that workers of a cluster look at: they go on while it stands. One coordinator a run."""
_KNOCK_S = 10.0


@contextmanager
def on_ray(steps: Steps, shards: int | None = None) -> Iterator["ClusterSteps"]:
    """The same steps on a cluster: the one of RAY_ADDRESS, else one that runs on this host, else one started here.

    `shards` None: as many as the cluster has nodes, or GPUs for a student that runs there. Raises UsageError where Ray
    is not installed, or does not answer at RAY_ADDRESS.
    """
    with _connected(steps.reporter):
        yield ClusterSteps(**{each.name: getattr(steps, each.name) for each in fields(Steps)}, shards=shards)


@contextmanager
def _connected(reporter: Reporter) -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UsageError(f"--engine ray needs Ray ({error}). Install it with: pip install 'tempered[ray]'.") from error
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    internal: Any = import_module("ray._private.worker")
    # It has no switch, and would print what raylets say on stdout, in the middle of tables and of --json.
    internal.print_to_stdstream = lambda data, ignore_prefix: None
    address = os.environ.get("RAY_ADDRESS")
    try:
        _knock(address)
        ray.init(address or "auto", **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address or not isinstance(error, ConnectionError):
            raise UsageError(
                f"The Ray cluster at {address or 'this host'} cannot be used: {error}. Nothing was sent. Start it, or "
                "set RAY_ADDRESS to another; where none runs and RAY_ADDRESS is not set, one is started here."
            ) from error
        reporter.line("ray: RAY_ADDRESS is not set and no cluster runs here; one is started on this host alone")
        ray.init("local", include_dashboard=False, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str | None) -> None:
    """Raise ConnectionError where nothing listens: Ray itself would try for ten minutes and more."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        try:
            socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()
        except OSError as error:
            raise ConnectionError(str(error)) from error


@dataclass(frozen=True)
class ClusterSteps(Steps):
    """Steps whose replies, scores and verdicts are made on the cluster, shard by shard; the others run here."""

    shards: int | None = None

    def generate(self, *, strict: bool = True, forget_missing: bool = False) -> "tuple[Prompts, Tally]":
        """As `Steps.generate`; limits, failures and rounds are those of all shards together."""
        from builder.prompts import load_prompts
        from builder.resample import Resampled

        if self._asks_nobody():
            return super().generate(strict=strict, forget_missing=forget_missing)
        self._budget()  # a limit without prices, and a source that cannot be read, are one message and at once
        prompts = load_prompts(self.recipe, limit=self.limit)
        total = len(prompts.rows) * len(self.recipe.generation.temperatures) * self.recipe.generation.samples
        results, is_stopped = self._on_cluster(
            "generate", {"strict": strict, "forget_missing": forget_missing}, total=total
        )
        tally = tally_of(results.get("generate", {"total": total}))
        tally.stopped = tally.stopped or is_stopped
        show_generated(self.reporter, prompts, tally)
        if "resample" in results:
            show_resampled(self.reporter, self.recipe.generation, Resampled(**results["resample"]))
        self._settle("generate", tally, strict=strict)
        return prompts, tally

    def score(self, *, retry: bool = False) -> "ScoreResult":
        """As `Steps.score`."""
        from builder.rescore import Rescored
        from builder.score import score

        results, is_stopped = self._on_cluster("score", {"retry": retry})
        if is_stopped:
            raise KeyboardInterrupt
        found = results["score"]
        whole = score(self.run, self.recipe)  # nothing is left: it counts what the shards wrote
        result = replace(whole, scored=found["scored"], rescored=Rescored(**found["rescored"]))
        show_scored(self.reporter, result)
        self._require_scores(result)
        return result

    def verify(self, *, calibrate: bool = False) -> "VerifyResult":
        """As `Steps.verify`; trying the judge (`calibrate`) concerns no shard and is done here."""
        from builder.judge import JudgeResult
        from builder.judge_show import show_judged
        from builder.verify import VerifyResult

        if calibrate:
            return super().verify(calibrate=True)
        results, is_stopped = self._on_cluster("verify", {})
        if is_stopped:
            raise KeyboardInterrupt
        result = VerifyResult(**results["verify"])
        show_verified(self.reporter, result)
        if "judge" in results:
            show_judged(self.reporter, JudgeResult(**results["judge"]))
        return result

    @property
    def is_spread(self) -> bool:
        return True

    def prepare(self) -> None:
        """As `Steps.prepare`."""
        results, is_stopped = self._on_cluster("prepare", {})
        if is_stopped:
            raise KeyboardInterrupt
        self.reporter.result({"prepare": results["prepare"]})

    def _on_cluster(
        self, step: str, options: Mapping[str, bool], *, total: int | None = None
    ) -> tuple[dict[str, Any], bool]:
        """Results of all shards added up, as `--json` has them, and whether the step was interrupted.

        Raises the error of the first shard that has one, after those that ran have ended.
        """
        shards, actors, gpus = self._places(step)
        began = time.monotonic()
        with self.reporter.progress(step, total) as meter:
            pool: Pool | None = None
            try:
                with claimed(self.run, COORDINATOR) as claim:
                    job = self._job(step, shards, options, claim.path, claim.record.nonce)
                    pool = Pool(job, actors, gpus)
                    pool.run(lambda: self._show(pool, meter, total, began))
            except KeyboardInterrupt:  # the claim is given back: the workers stop sending and store what is in flight
                if pool is None:
                    raise
                pool.drain(lambda: self._show(pool, meter, total, began))
        return self._settled(pool)

    def _places(self, step: str) -> tuple[int, int, int]:
        """Shards, actors (0: tasks), and GPUs of each actor."""
        import ray

        cluster: Any = ray  # it has no types
        nodes = [node for node in cluster.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        if not nodes:
            raise ClusterError(
                "No node of the Ray cluster has a CPU to give, and every worker takes one. Nothing was sent. Start a "
                "node with ray start --address=… --num-cpus=N."
            )
        if step != "score":
            return self.shards or len(nodes), 0, 0
        is_local = self.recipe.require_student().backend == "local"
        gpus = int(cluster.cluster_resources().get("GPU", 0)) if is_local else 0
        return self.shards or gpus or len(nodes), gpus or len(nodes), int(gpus > 0)

    def _job(self, step: str, shards: int, options: Mapping[str, bool], coordinator: Path, nonce: str) -> Job:
        return Job(
            step=step,
            shards=shards,
            recipe=self.recipe.resolved(),
            recipe_dir=str(self.recipe_dir.absolute()),
            root=str(self.run.root.absolute()),
            folder=str(Path.cwd()),
            coordinator=str(coordinator.absolute()),
            nonce=nonce,
            code=code_version(),
            limit=self.limit,
            max_cost=self.limits.cost,
            max_tokens=self.limits.tokens,
            allow_code=self.allow_code,
            options=options,
            keys=_keys(self.recipe.resolved()),
        )

    def _show(self, pool: Pool, meter: Meter, total: int | None, began: float) -> None:
        """One progress of all shards: what ended ones said, and what running ones keep in the run directory."""
        step = pool.job.step
        ended = [report.results[step] for report in pool.reports.values() if step in report.results]
        found = [tally_of(values) if step == "generate" else tally_of_done(values) for values in ended]
        for shard in pool.running:
            with suppress(OSError, ValueError):  # not begun yet, or just ended
                state = Live.of(self.run, step, shard).path.read_text(encoding="utf-8")
                found.append(tally_of(json.loads(state)))
        now = tally_of(sum_of([asdict(each) for each in found]))
        said = note(now, time.monotonic() - began) if step == "generate" else ""
        meter.update(now.done, now.total if total is None else total, said)

    def _settled(self, pool: Pool) -> tuple[dict[str, Any], bool]:
        """What all shards say together. Raises what went wrong in one."""
        reports = [report for _, report in sorted(pool.reports.items())]
        if pool.lost:
            number = journal.counts(self.run.journal_dir).get("maybe_billed", 0)
            self.reporter.warn(
                f"{pool.job.step}: workers were lost, and their shards done again ({'; '.join(pool.lost)}). What they "
                f"had stored is kept; this run has {number:,} requests that were sent and never answered (maybe_billed)"
            )
        for text in dict.fromkeys(text for report in reports for text in report.warnings):
            if pool.job.step == "verify":  # those of the other steps are said on the sum of all shards
                self.reporter.warn(text)
        nodes = sorted({report.node for report in reports})
        facts = {"shards": pool.job.shards, "nodes": nodes, "lost": pool.lost}
        self.reporter.result({"ray": facts})
        if pool.failed is not None:
            raise pool.failed
        if failures := [report for report in reports if report.failure is not None]:
            _raise(failures, pool.job.shards)
        is_stopped = len(reports) < pool.job.shards or any(report.is_interrupted for report in reports)
        return sum_of([report.results for report in reports]), is_stopped


def _raise(failures: list[Report], shards: int) -> None:
    """Raise the first shard's error, as its class, once where several say the same."""
    said: dict[tuple[str | None, str], list[Report]] = {}
    for report in failures:
        assert report.failure is not None
        said.setdefault(report.failure, []).append(report)
    texts = []
    for (_, text), same in said.items():
        names = ", ".join(str(report.shard) for report in same)
        where = ", ".join(sorted({report.node for report in same}))
        texts.append(f"shard{'s' if len(same) > 1 else ''} {names} of {shards} on {where}: {text}")
    kind = next(iter(said))[0]
    message = "\n".join(texts)
    if kind is None:
        raise RuntimeError(message)
    raise getattr(errors, kind, BuilderError)(message)


def _keys(resolved: Mapping[str, Any]) -> dict[str, str]:
    """Variables that hold keys and say how to reach services; folders are each node's own."""
    named = _named(resolved)
    return {
        name: value
        for name, value in os.environ.items()
        if name in named or (name.startswith(("OPENAI_", "HF_")) and not name.endswith(("HOME", "CACHE", "PATH")))
    }


def _named(value: Any) -> set[str]:
    """Variables that some `api_key_env` of the recipe names."""
    if isinstance(value, Mapping):
        own = {value["api_key_env"]} if isinstance(value.get("api_key_env"), str) else set[str]()
        return own.union(*map(_named, value.values()))
    return set[str]().union(*map(_named, value)) if isinstance(value, list) else set()
