"""The teacher's own ceiling: how often its stored replies to the recipe's prompts are right. Sends nothing."""

from dataclasses import dataclass

from builder.errors import VerifyError
from builder.eval_counts import Counts, counted, judged
from builder.release_rows import unplaced
from builder.store import Run


@dataclass(frozen=True)
class Ceiling(Counts):
    """Counts of one teacher at one temperature. Questions with fewer replies than most are left out of larger k."""

    model: str
    temperature: float


def ceilings(run: Run) -> list[Ceiling]:
    """Ceilings of all teachers and temperatures of the run, by its stored verdicts; more than its data cannot teach.

    Raises VerifyError where no teacher reply has a verdict, or some that could have one do not.
    """
    rows = judged(run, "teacher")
    if rows.is_empty():
        raise VerifyError(
            f"{run.root} holds no teacher reply to a question with a gold that a verifier reads, so the teacher has no "
            "ceiling to count. Run builder generate and builder verify first, on prompts with gold and gold_type."
        )
    parts = rows.partition_by("model", "temperature", as_dict=True)
    return [
        Ceiling(**vars(counted(part)), model=unplaced(str(model)), temperature=float(str(temperature)))
        for (model, temperature), part in sorted(parts.items())
    ]
