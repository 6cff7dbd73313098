"""The whole story on one screen: prompts → responses → scores → verdicts → selection → release."""

from dataclasses import asdict, dataclass
from pathlib import Path

from builder.config import Recipe
from builder.console import Reporter
from builder.errors import EndpointError, ScoreError
from builder.generate import MAX_TRIES, Tally, generate
from builder.prompts import Prompts, load_prompts, write_prompts
from builder.release import Release, release
from builder.score import ScoreResult, score
from builder.selection import SelectionResult, select
from builder.show import note, show_generated, show_released, show_scored, show_selected, show_verified
from builder.store import Run
from builder.verify import VerifyResult, verify


@dataclass(frozen=True)
class Steps:
    """The steps of one run on one recipe. Each is safe to rerun and does only what its inputs have not seen."""

    run: Run
    recipe: Recipe
    recipe_dir: Path
    reporter: Reporter
    shard: tuple[int, int] = (0, 1)
    limit: int | None = None

    def everything(self) -> Release:
        """Every step in order."""
        self.generate(strict=False)
        if self.recipe.student is not None:
            self.score()
        self.verify()
        return self.release(self.select())

    def generate(self, *, strict: bool = True) -> tuple[Prompts, Tally]:
        """Ask what is missing. Raises EndpointError when requests kept failing, KeyboardInterrupt when interrupted.

        Requests that the endpoint refuses for good are an error too if `strict`, else a warning: nothing would mend it.
        """
        prompts = load_prompts(self.recipe, limit=self.limit)
        write_prompts(self.run, prompts, limited=self.limit is not None)
        wanted = len(prompts.rows) * len(self.recipe.generation.temperatures) * self.recipe.generation.samples
        with self.reporter.progress("generate", wanted) as meter:
            tally = generate(
                self.run,
                self.recipe,
                prompts,
                shard=self.shard,
                progress=lambda now: meter.update(now.done, wanted, note(now)),
            )
        show_generated(self.reporter, prompts, tally)
        self.run.event("generate", asdict(tally))
        if tally.stopped:
            raise KeyboardInterrupt
        missing = (
            f"{tally.failed} requests failed {MAX_TRIES} times and {tally.set_aside} got no reply for good; last: "
            f"{tally.last_error}. {tally.done:,} of {tally.total:,} replies are stored"
        )
        if tally.failed or (strict and tally.set_aside):
            raise EndpointError(f"{missing}; rerun to ask for the rest.")
        if tally.set_aside:
            self.reporter.warn(f"{missing}. The others go on; builder status names the errors.")
        return prompts, tally

    def score(self) -> ScoreResult:
        """Score what this student has not scored. Raises ScoreError when nothing can be and the selection needs it."""
        with self.reporter.progress("score") as meter:
            result = score(self.run, self.recipe, shard=self.shard[0], progress=meter.update)
        show_scored(self.reporter, result)
        self.run.event("score", asdict(result))
        if result.nothing_scored and self.recipe.selection.needs_logprobs:
            raise ScoreError(
                f"None of {sum(result.statuses.values()):,} replies could be scored, and this recipe selects by "
                "divergence. The reasons stand above and in table scores; every reply is kept. Mend that, or select "
                "without the student: selection.selector=random (or longest) and no rule score_missing."
            )
        return result

    def verify(self) -> VerifyResult:
        """Verify what has no verdict."""
        with self.reporter.progress("verify") as meter:
            result = verify(self.run, shard=self.shard[0], progress=meter.update)
        show_verified(self.reporter, result)
        self.run.event("verify", asdict(result))
        return result

    def select(self) -> SelectionResult:
        """Run rules, selector and stages."""
        result = select(self.run, self.recipe, recipe_dir=self.recipe_dir)
        show_selected(self.reporter, result)
        self.run.event("select", asdict(result))
        return result

    def release(self, selected: SelectionResult | None = None) -> Release:
        """Write the release of the current selection, made anew so that it is the recipe's."""
        chosen = selected or select(self.run, self.recipe, recipe_dir=self.recipe_dir)
        written = release(self.run, self.recipe, chosen, recipe_dir=self.recipe_dir)
        show_released(self.reporter, written)
        self.run.event("release", {"version": written.version, "is_new": written.is_new})
        return written
