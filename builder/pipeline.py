"""The whole story on one screen: prompts → responses → scores → verdicts → selection → release.

Modules of a step are imported where the step runs: the client alone takes as long as a small selection.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from builder.claim import Claim, claimed, settings_of
from builder.config import Recipe
from builder.console import Reporter
from builder.errors import BudgetError, EndpointError, ScoreError
from builder.live import Live
from builder.schema import PAID_ROLES
from builder.show import (
    note,
    show_generated,
    show_mixed,
    show_prompts,
    show_released,
    show_resampled,
    show_scored,
    show_selected,
    show_verified,
)
from builder.stages import needs_replies
from builder.store import Run
from builder.tally import MAX_TRIES, Tally

if TYPE_CHECKING:
    from builder.budget import Budget
    from builder.candidate import StudentModel
    from builder.mix import MixResult
    from builder.pairs import PairsResult
    from builder.prompts import Prompts
    from builder.release import Release
    from builder.requests import Request
    from builder.resample import Resampled
    from builder.rewrite import RewriteResult
    from builder.score import ScoreResult
    from builder.selection import SelectionResult
    from builder.verify import VerifyResult
    from builder.wire import Wire


@dataclass(frozen=True)
class Limits:
    """What the run may cost in all: USD by the declared prices, and tokens of prompts and completions."""

    cost: float | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Steps:
    """The steps of one run on one recipe. Each is safe to rerun and does only what its inputs have not seen.

    `allow_code`: whether rules and selectors that are Python may run. `student`: one that is loaded already.
    """

    run: Run
    recipe: Recipe
    recipe_dir: Path
    reporter: Reporter
    shard: tuple[int, int] = (0, 1)
    limit: int | None = None
    limits: Limits = Limits()
    allow_code: bool = False
    student: "StudentModel | None" = None

    @property
    def is_spread(self) -> bool:
        """Whether other processes do other shards: then each does as much as it can for its own."""
        return self.shard[1] > 1

    def everything(self) -> "Release | None":
        """Every step in order; a selection that cannot run is refused before anything is paid.

        One of several shards ends before the first step that needs all replies, without a release.
        """
        from builder.code_rules import refuse_code
        from builder.decision import plan_selection
        from builder.quotas import check_domains

        plan = plan_selection(self.recipe, self.recipe_dir)
        check_domains(self.run, self.recipe, may_come=True)
        if not self.allow_code:
            refuse_code(plan.files)
        has_pairs = any(stage.kind == "reward" for stage in self.recipe.stages.values())
        if has_pairs:
            self.recipe.require_preference()
        self.generate(strict=False)
        has_replies = not self._asks_nobody()
        if has_replies:
            if self.recipe.student is not None:
                self.score()
            self.verify()
            if self.is_spread:
                self.prepare()
        index, count = self.shard
        if count > 1:
            done = f"shard {index} of {count} is done; when all {count} are"
            self.reporter.line(f"{done}, builder run without --shard selects and releases")
            return None
        if has_replies and has_pairs:
            self.pairs()
        if has_replies and self.recipe.rewrite is not None:
            self.rewrite()
        return self.release(self.select())

    def prepare(self) -> None:
        """What a selection computes for each reply, for those of this shard."""
        from builder.code_rules import CodeFile
        from builder.decision import plan_selection
        from builder.dedup import update_signatures
        from builder.evidence import tables_of
        from builder.features import update_features

        files = [one for one in plan_selection(self.recipe, self.recipe_dir).files if not isinstance(one, CodeFile)]
        with self.reporter.progress("prepare") as meter:
            computed = update_features(self.run, shard=self.shard, progress=meter.step)
            if any("stg_duplicates" in tables_of(file) for file in files):
                computed += update_signatures(self.run, shard=self.shard, progress=meter.step)
        self.reporter.result({"prepare": {"computed": computed}})

    def generate(self, *, strict: bool = True, forget_missing: bool = False) -> "tuple[Prompts, Tally]":
        """Ask what is missing. Raises EndpointError when requests kept failing, KeyboardInterrupt when interrupted.

        With `generation.until_correct` replies are verified, and more asked where too few are correct, until none are.
        Requests that the endpoint refuses for good are an error too if `strict`, else a warning: nothing would mend it.
        Sealed replies that the tables lack are a TableError; `forget_missing` lets them be paid for again.
        Without a teacher the prompts are read and nothing is asked, where no stage is made of replies.
        """
        with self._alone("generate"):
            return self._generate(strict=strict, forget_missing=forget_missing)

    def _alone(self, step: str) -> AbstractContextManager[Claim]:
        """Hold this shard of a step; living shards of it must come from a recipe that makes the same rows."""
        return claimed(self.run, step, self.shard, settings=settings_of(self.recipe, step))

    def _generate(self, *, strict: bool, forget_missing: bool) -> "tuple[Prompts, Tally]":
        from builder.generate import generate
        from builder.prompts import load_prompts, write_prompts

        prompts = load_prompts(self.recipe, limit=self.limit)
        write_prompts(self.run, prompts, limited=self.limit is not None)
        if self._asks_nobody():
            show_prompts(self.reporter, prompts)
            return prompts, Tally()
        wanted = len(prompts.rows) * len(self.recipe.generation.temperatures) * self.recipe.generation.samples
        with self._watched("generate", wanted) as progress:
            tally = generate(
                self.run,
                self.recipe,
                prompts,
                shard=self.shard,
                progress=progress,
                forget_missing=forget_missing,
                budget=self._budget(),
            )
        self.run.event("generate", asdict(tally))
        may_resample = self.recipe.generation.until_correct and not (tally.stopped or tally.failed or tally.limit)
        resampled = self._resample(prompts, tally) if may_resample else None
        show_generated(self.reporter, prompts, tally)
        if resampled is not None:
            show_resampled(self.reporter, self.recipe.generation, resampled)
        self._settle("generate", tally, strict=strict)
        return prompts, tally

    def _asks_nobody(self) -> bool:
        return self.recipe.teacher is None and not needs_replies(self.recipe)

    def _resample(self, prompts: "Prompts", tally: Tally) -> "Resampled":
        """Verify, and ask more where too few replies are correct; counts into `tally`. A spent budget is no error."""
        from builder.resample import add, resample
        from builder.wire import Wire

        wire = Wire(self.recipe.require_teacher(), self.recipe.generation, "teacher")

        def ask(what: str, wanted: "list[Request]") -> Tally:
            return self._ask(what, wire, wanted, len(wanted), self._budget())

        def verify() -> None:
            self._verdicts()
            if self.recipe.judge:
                self._judge(only_calibrate=False)

        say = self.reporter.line
        found, more = resample(self.run, self.recipe, prompts, shard=self.shard, ask=ask, verify=verify, say=say)
        add(tally, more)
        tally.limit = None
        self.run.event("resample", asdict(found))
        return found

    def _budget(self) -> "Budget":
        from builder.budget import open_budget
        from builder.judge_cost import prices_of_others

        teacher, limits = self.recipe.require_teacher(), self.limits
        return open_budget(self.run, teacher, limits.cost, limits.tokens, others=prices_of_others(self.recipe))

    @contextmanager
    def _watched(self, what: str, total: int) -> Iterator[Callable[[Tally], None]]:
        """Progress here, and for `builder status` in another terminal."""
        live = Live.of(self.run, what, self.shard[0])
        with self.reporter.progress(what, total) as meter:

            def seen(now: Tally) -> None:
                live.update(now)
                meter.update(now.done, total, note(now, live.seconds))

            try:
                yield seen
            finally:
                live.end()

    def _settle(self, what: str, tally: Tally, *, strict: bool) -> None:
        """Raise KeyboardInterrupt when interrupted, EndpointError for missing replies; warn where that is final."""
        if tally.stopped:
            raise KeyboardInterrupt
        if tally.limit is not None:
            raise BudgetError(
                f"{what} stopped at {tally.limit}. {tally.done:,} of {tally.total:,} replies are stored and kept; no "
                "request was sent that could have gone over. Rerun with a larger limit for the rest."
            )
        missing = (
            f"{what}: {tally.failed} requests failed {MAX_TRIES} times and {tally.set_aside} got no reply for good; "
            f"last: {tally.last_error}. {tally.done:,} of {tally.total:,} replies are stored"
        )
        if tally.failed or (strict and tally.set_aside):
            raise EndpointError(f"{missing}; rerun to ask for the rest.")
        if tally.set_aside:
            self.reporter.warn(f"{missing}. The others go on; builder status names the errors.")

    def mix(self, student: Path, endpoint: str | None = None) -> "MixResult":
        """Roll out the checkpoint in folder `student`, let the teacher finish, judge and select the result.

        Raises MixError where there is nothing to be had; the teacher's ability to go on is tried before anything else.
        """
        with self._alone("mix"):
            return self._mix(student, endpoint)

    def _mix(self, student: Path, endpoint: str | None) -> "MixResult":
        from builder.continuation import continuing
        from builder.mix import open_checkpoint, prepare, served
        from builder.verify import verify

        policy = self.recipe.require_mixed_policy()
        checkpoint = open_checkpoint(self.recipe, student)
        self._select()
        teacher = continuing(self.recipe, policy)
        mixing, result = prepare(self.run, self.recipe, policy, checkpoint, teacher)
        with served(checkpoint, endpoint, mixing.questions[0]) as (url, name):
            self._send("rollouts", mixing.student_wire(url, name), mixing.rollout_requests())
        if "wrong" in policy.keep:
            verify(self.run, shard=self.shard)
        rows = mixing.rows()
        self._send("continuations", teacher.wire, mixing.continuation_requests(rows))
        mixing.finish(rows)
        result.count(self.run)
        show_mixed(self.reporter, result)
        self.run.event("mix", asdict(result) | {"student": checkpoint.revision})
        self.score()
        self.verify()
        self.select()
        return result

    def _send(self, what: str, wire: "Wire", requests: "list[Request]") -> Tally:
        """Send what is not stored, with progress. Raises as `_settle`."""
        tally = self._ask(what, wire, requests, len(requests), self._budget() if wire.role in PAID_ROLES else None)
        self._settle(what, tally, strict=False)
        return tally

    def _ask(
        self, what: str, wire: "Wire", requests: "Iterable[Request]", number: int, budget: "Budget | None"
    ) -> Tally:
        from builder.generate import send

        with self._watched(what, number) as progress:
            run, recipe, shard = self.run, self.recipe, self.shard
            tally = send(run, recipe, wire, requests, number, shard=shard, progress=progress, budget=budget)
        self.run.event(what, asdict(tally))
        return tally

    def score(self, *, retry: bool = False) -> "ScoreResult":
        """Score what this student has not scored; `retry` as in `builder.score`.

        Raises ScoreError when nothing can be and the selection needs it, BudgetError when rescoring would go over.
        """
        from builder.rescore import tokens_to_rescore
        from builder.score import score

        budget = self._budget()
        with budget.spending(self.run, self.shard), self.reporter.progress("score") as meter:
            budget.require(tokens_to_rescore(self.run, self.recipe, shard=self.shard), "rescoring by the teacher")
            result = score(
                self.run, self.recipe, shard=self.shard, student=self.student, retry=retry, progress=meter.update
            )
        show_scored(self.reporter, result)
        self.run.event("score", asdict(result))
        self._require_scores(result)
        return result

    def _require_scores(self, result: "ScoreResult") -> None:
        if result.nothing_scored and self.recipe.selection.needs_logprobs:
            raise ScoreError(
                f"None of {sum(result.statuses.values()):,} replies could be scored, and this recipe selects by "
                "divergence. The reasons stand above and in table scores; every reply is kept. Mend that, or select "
                "without the student: selection.selector=random (or longest) and no rule score_missing."
            )

    def verify(self, *, calibrate: bool = False) -> "VerifyResult":
        """Verify what has no verdict, and where the recipe has a judge, ask it about what no verifier could decide.

        With `calibrate` the judge is only tried on known answers. Raises as `_judge`.
        """
        result = self._verdicts()
        show_verified(self.reporter, result)
        self.run.event("verify", asdict(result))
        if calibrate or self.recipe.judge or result.for_judge:
            self._judge(only_calibrate=calibrate)
        return result

    def _verdicts(self) -> "VerifyResult":
        from builder.verify import verify

        with self.reporter.progress("verify") as meter:
            return verify(self.run, shard=self.shard, progress=meter.update)

    def _judge(self, *, only_calibrate: bool) -> None:
        """Try the judge on known answers, then let it decide; nothing of it is asked where nothing is open.

        Raises UsageError where the recipe has no judge, VerifyError for one that errs too often: then no verdict of it
        is written. Raises as `_settle` besides, and EndpointError where nothing is answered.
        """
        from builder.judge import judge, open_replies
        from builder.judge_calibration import calibrate, calibrate_pairs
        from builder.judge_show import show_calibration, show_judged, show_pairs

        replies = None if only_calibrate else open_replies(self.run, self.recipe, shard=self.shard)
        if replies is None or not replies.is_empty():
            calibration = calibrate(self.run, self.recipe, self._ask_judge)
            show_calibration(self.reporter, self.recipe, calibration)
            self.run.event("calibrate", asdict(calibration) | {"problem": calibration.problem})
            if replies is None:
                show_pairs(self.reporter, calibrate_pairs(self.run, self.recipe, self._ask_judge))
            calibration.require_trust()
        if replies is not None:
            judged = judge(self.run, self.recipe, replies, self._ask_judge, shard=self.shard)
            show_judged(self.reporter, judged)
            self.run.event("judge", asdict(judged))

    def _ask_judge(self, what: str, wire: "Wire", requests: "Iterable[Request]", number: int) -> Tally:
        from builder.judge_cost import judge_budget

        budget = judge_budget(self.run, self.recipe, self.limits.cost, self.limits.tokens)
        tally = self._ask(what, wire, requests, number, budget)
        if tally.set_aside and not tally.done:
            raise EndpointError(
                f"{what}: {wire.name} answered none of {number:,} requests; last: {tally.last_error}. Where the "
                "endpoint refuses response_format, set judge.response_format=none."
            )
        self._settle(what, tally, strict=False)
        return tally

    def pairs(self) -> "PairsResult":
        """Ask the judge which of two replies to a prompt is better; nothing is asked where all pairs are judged.

        Raises UsageError without section `preference` or `judge`, VerifyError for a judge that errs too often on known
        answers or pairs: then no pair is written. Raises as `_settle` besides, and TableError where there is no pair.
        """
        with self._alone("pairs"):
            return self._pairs()

    def _pairs(self) -> "PairsResult":
        from builder.judge_calibration import calibrate, calibrate_pairs
        from builder.judge_show import show_calibration, show_pairs
        from builder.pairs import choose_pairs, judge_pairs, require_pair_trust
        from builder.pairs_show import show_judged_pairs

        run, recipe, folder = self.run, self.recipe, self.recipe_dir
        code = self.allow_code
        with self.reporter.progress("pairs") as meter:
            chosen = choose_pairs(
                run, recipe, recipe_dir=folder, limit=self.limit, allow_code=code, progress=meter.step
            )
        if chosen.pairs:
            calibration = calibrate(run, recipe, self._ask_judge)
            show_calibration(self.reporter, recipe, calibration)
            calibration.require_trust()
            measured = calibrate_pairs(run, recipe, self._ask_judge)
            show_pairs(self.reporter, measured)
            require_pair_trust(measured, calibration.max_error_rate)
        result = judge_pairs(run, recipe, chosen, self._ask_judge)
        show_judged_pairs(self.reporter, result)
        run.event("pairs", asdict(result))
        return result

    def rewrite(self) -> "RewriteResult":
        """Ask the second model for rewrites of replies that break no rule, then score and verify what it wrote.

        Raises UsageError without section `rewrite`, TableError where there is nothing to rewrite, EndpointError where
        nothing is answered; as `_settle`, `score` and `verify` besides.
        """
        with self._alone("rewrite"):
            return self._rewrite()

    def _rewrite(self) -> "RewriteResult":
        from builder.rewrite import choose_originals, rewrite
        from builder.rewrite_show import show_answers, show_rewritten
        from builder.rewrite_steps import rewrite_counts
        from builder.staging import build_staging, staging_variables

        run, recipe = self.run, self.recipe
        folder, code = self.recipe_dir, self.allow_code
        with self.reporter.progress("rewrite") as meter:
            chosen = choose_originals(run, recipe, recipe_dir=folder, allow_code=code, progress=meter.step)
        result = rewrite(run, recipe, chosen, self._ask_rewriter, limit=self.limit)
        show_rewritten(self.reporter, result)
        run.event("rewrite", asdict(result))
        if recipe.student is not None:
            self.score()
        self.verify()
        build_staging(run, staging_variables(recipe))
        show_answers(self.reporter, rewrite_counts(run))
        return result

    def _ask_rewriter(self, what: str, wire: "Wire", requests: "Iterable[Request]", number: int) -> Tally:
        from builder.judge_cost import rewrite_budget

        budget = rewrite_budget(self.run, self.recipe, self.limits.cost, self.limits.tokens)
        tally = self._ask(what, wire, requests, number, budget)
        if tally.set_aside and not tally.done:
            raise EndpointError(f"{what}: {wire.name} answered none of {number:,} requests; last: {tally.last_error}.")
        self._settle(what, tally, strict=False)
        return tally

    def select(self) -> "SelectionResult":
        """Run rules, selector and stages."""
        result = self._select()
        show_selected(self.reporter, result)
        self.run.event("select", asdict(result))
        return result

    def _select(self) -> "SelectionResult":
        from builder.selection import select

        with self.reporter.progress("select") as meter:
            code = self.allow_code
            return select(self.run, self.recipe, recipe_dir=self.recipe_dir, allow_code=code, progress=meter.step)

    def release(self, selected: "SelectionResult | None" = None) -> "Release":
        """Write the release of the current selection, made anew so that it is the recipe's."""
        from builder.release import release

        chosen = selected or self._select()
        with self.reporter.progress("release") as meter:
            written = release(self.run, self.recipe, chosen, recipe_dir=self.recipe_dir, progress=meter.step)
        show_released(self.reporter, written)
        self.run.event("release", {"version": written.version, "is_new": written.is_new})
        return written
