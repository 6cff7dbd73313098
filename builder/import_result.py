"""What an import is told, what it found, and how it says so."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from builder.console import Reporter


@dataclass(frozen=True)
class Declared:
    """What the user says of all rows where the files do not. `requests` is the input file of a vLLM batch."""

    temperature: float | None = None
    finish_reason: str | None = None
    license: str | None = None
    requests: Path | None = None


@dataclass
class ImportResult:
    """What an import added. Counts are replies, but `prompts` (new ones) and `bad` (rows, or replies inside of rows).

    `repeated` stood in the run or in the files already; `completed` are those of them about which this import knew more
    and that took the place of what was there. `without_reply` are companion rows whose reply is in none of the files.
    """

    replies: int = 0
    repeated: int = 0
    completed: int = 0
    prompts: int = 0
    with_logprobs: int = 0
    without_reply: int = 0
    no_finish_reason: int = 0
    no_token_count: int = 0
    other_models: dict[str, int] = field(default_factory=dict)
    bad: int = 0
    bad_rows: str | None = None
    notes: list[str] = field(default_factory=list)


def show_imported(reporter: Reporter, result: ImportResult) -> None:
    """What came, and what the replies lack that rules, selectors and scores ask for."""
    reporter.line(
        f"import: {result.replies:,} new replies to {result.prompts:,} new prompts, {result.with_logprobs:,} with "
        f"logprobs; {result.repeated:,} were there already"
        + (f", {result.completed:,} completed" if result.completed else "")
    )
    for warning in _warnings(result):
        reporter.warn(warning)
    reporter.result({"import": asdict(result)})


def _warnings(result: ImportResult) -> list[str]:
    found = list(result.notes)
    if result.bad:
        found.append(f"{result.bad:,} rows were left out; {result.bad_rows} names each and says why")
    if result.no_finish_reason:
        found.append(
            f"{result.no_finish_reason:,} replies do not say how they ended, so rule response_truncated rejects them; "
            "where the set is known to hold none that were cut, rerun with --finish-reason stop"
        )
    if result.no_token_count:
        found.append(
            f"{result.no_token_count:,} replies come without a count of their tokens: selectors longest and "
            "length_matched and the funnel's tokens leave them out"
        )
    if result.without_reply:
        found.append(f"{result.without_reply:,} rows of logprobs belong to no reply of these files")
    for model, number in sorted(result.other_models.items()):
        found.append(f"{number:,} replies are by {model!r}, which is not the recipe's teacher")
    return found
