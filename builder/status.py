"""Progress, cost and errors of a run, read from its files; safe while another process writes."""

from dataclasses import fields
from typing import Any

import polars as pl

from builder import journal
from builder.batch_journal import open_batches
from builder.claim import STEPS, shard_of
from builder.claim_file import Holder, holders
from builder.claim_record import host
from builder.console import Reporter
from builder.errors import UsageError
from builder.live import running
from builder.release import latest_release
from builder.release_manifest import calls
from builder.schema import PAID_ROLES, TABLES
from builder.show import note
from builder.store import Run
from builder.tally import Tally


def show_status(reporter: Reporter, run: Run) -> None:
    """Print tables, attempts by outcome, money, errors, and what to back up."""
    if not run.root.is_dir():
        raise UsageError(f"There is no run at {run.root}; builder generate makes it, or name another with --run.")
    now = running(run)
    for state in now:
        reporter.line(described(state))
    seen = holders([*sorted((run.root / "claims").glob("*.lock")), *sorted(run.journal_dir.glob("*.lock"))])
    elsewhere, lost = _written_elsewhere(seen), _lost(seen)
    for line in [*elsewhere, *lost]:
        reporter.line(line)
    attempts = journal.counts(run.journal_dir)
    batches = open_batches(run.journal_dir)
    paid = calls(run)
    reporter.table(f"Run {run.root}", ("table", "rows"), [(name, run.rows(name)) for name in TABLES if run.rows(name)])
    reporter.table("", ("attempts", "number"), sorted(attempts.items()))
    if batches:
        reporter.table("", ("journal", "open batch", "state", "requests", "endpoint"), batches)
    errors = sorted(journal.errors_by_kind(run.journal_dir).items(), key=lambda item: -item[1])
    if errors:
        reporter.table("", ("error", "times"), errors[:10])
    reporter.line(
        f"{paid['completion_tokens'] or 0:,} completion tokens"
        + (f", ${paid['cost_usd']:.2f}" if paid["cost_usd"] is not None else ", no prices declared")
    )
    roles = _paid_by_role(run)
    if len(roles) > 1:
        dollars = [(*row[:3], "–" if row[3] is None else f"{row[3]:.2f}") for row in roles]
        reporter.table("", ("paid for", "replies", "tokens", "USD"), dollars)
    newest = latest_release(run)
    reporter.line(f"latest release: {newest.version if newest else 'none'}")
    reporter.line("back up these; together they hold every reply that was paid for:")
    for path in (run.journal_dir, *map(run.table_dir, ("responses", "logprobs"))):
        reporter.line(f"  {path}")
    reporter.result(
        {
            "running": now,
            "written_elsewhere": elsewhere,
            "lost": lost,
            "tables": {name: run.rows(name) for name in TABLES},
            "attempts": attempts,
            "batches": [
                dict(zip(("journal", "id", "state", "requests", "endpoint"), each, strict=True)) for each in batches
            ],
            "calls": paid,
            "roles": {role: dict(zip(("replies", "tokens", "cost_usd"), rest, strict=True)) for role, *rest in roles},
            "errors": dict(errors),
            "release": newest.version if newest else None,
        }
    )


def _paid_by_role(run: Run) -> list[tuple[str, int, int, float | None]]:
    """Role, replies, completion tokens and USD (None without prices) of what was paid for: teacher, judge and so on."""
    cost = pl.when(pl.col("cost_usd").is_not_null().any()).then(pl.col("cost_usd").sum())
    paid = run.scan("responses").filter(pl.col("role").is_in(PAID_ROLES)).group_by("role")
    return paid.agg(pl.len(), pl.col("completion_tokens").sum(), cost.alias("cost_usd")).sort("role").collect().rows()


def _written_elsewhere(seen: list[Holder]) -> list[str]:
    """A line for each journal that another host writes: it cannot be read from here before that ends."""
    return [
        f"journal {each.path.stem} is being written by {each.record}: what it holds is counted here when that ends"
        for each in seen
        if each.record.what == "journal" and each.is_alive and not each.record.is_of_this_host
    ]


def _lost(seen: list[Holder]) -> list[str]:
    """A line for each shard of a step whose process is gone without an end."""
    gone = [each.record for each in seen if not each.is_alive and each.record.what in STEPS]
    return [
        f"{record.what}: {shard_of(record)} ended without a word on {record.host} (process {record.pid}); rerun it"
        for record in gone
    ]


def described(state: dict[str, Any]) -> str:
    """One line on a call that writes the run now."""
    known = {field.name for field in fields(Tally)}
    tally = Tally(**{name: value for name, value in state.items() if name in known})
    where = "" if state["host"] == host() else f" on {state['host']}"
    return (
        f"{state['what']} goes on (process {state['pid']}{where}): {tally.done:,} of {tally.total:,} replies, "
        f"{note(tally, state['seconds'])}"
    )
