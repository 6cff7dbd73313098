"""What each step says when it is done: a few lines and one table, at most 80 columns."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from builder.config import Generation
from builder.console import Reporter
from builder.grid import folded
from builder.live import duration, rate
from builder.tally import Tally

if TYPE_CHECKING:
    from builder.mix import MixResult
    from builder.probe import ProbeResult
    from builder.prompts import Prompts
    from builder.release import Release
    from builder.resample import Resampled
    from builder.score import ScoreResult
    from builder.selection import SelectionResult
    from builder.verify import VerifyResult


_WIDTH: Final = 80


def note(tally: Tally, seconds: float) -> str:
    """Pace, money and errors behind the bar of `generate`, `seconds` after its start."""
    pace, left = rate(tally, seconds)
    if tally.batches:
        parts = [tally.batches]  # which bring nothing for hours, then all at once: no pace to tell of
    else:
        parts = [f"{tally.in_flight} in flight", f"{pace:,.0f} tokens/s"]
        if left is not None:
            parts.append(f"{duration(left)} left")
    if tally.cost_usd:
        parts.append(f"${tally.cost_usd:.2f}")
    kinds = sorted(tally.errors.items(), key=lambda item: -item[1])[:3]
    return ", ".join([*parts, *(f"{number:,} × {kind}" for kind, number in kinds)])


def show_prompts(reporter: Reporter, prompts: "Prompts") -> None:
    """The prompts of a recipe that asks no teacher."""
    _show_read(reporter, prompts)
    golds = sum(row["gold"] is not None for row in prompts.rows)
    reporter.line(f"generate: {len(prompts.rows):,} prompts{_duplicates(prompts)}, {golds:,} with a gold")
    reporter.line("  no teacher, so nothing is asked; stages of kind grpo are made of prompts")
    reporter.result({"generate": {"prompts": len(prompts.rows), "duplicates": prompts.duplicates, "golds": golds}})


def _show_read(reporter: Reporter, prompts: "Prompts") -> None:
    for warning in prompts.notes:
        reporter.warn(warning)
    if prompts.gold_conflicts:
        reporter.warn(f"{prompts.gold_conflicts:,} prompts have conflicting golds in their sources; they count as none")


def _duplicates(prompts: "Prompts") -> str:
    return f" ({prompts.duplicates:,} duplicates merged)" if prompts.duplicates else ""


def show_generated(reporter: Reporter, prompts: "Prompts", tally: Tally) -> None:
    """What a call of generate brought."""
    _show_read(reporter, prompts)
    reporter.line(
        f"generate: {len(prompts.rows):,} prompts{_duplicates(prompts)}, {tally.done:,} of {tally.total:,} replies "
        f"stored ({tally.replies:,} now, {tally.stored_before:,} before); {tally.completion_tokens:,} tokens"
        + (f", ${tally.cost_usd:.2f}" if tally.cost_usd else "")
    )
    if tally.replies:
        remarks = {
            "cut at max_tokens": tally.cut,
            "without reasoning": tally.without_reasoning,
            "without logprobs": tally.without_logprobs,
        }
        found = [f"{number:,} {what}" for what, number in remarks.items() if number]
        if found:
            reporter.line(f"  of the new replies: {', '.join(found)}")
    if tally.stopped and tally.batches:
        reporter.warn(f"interrupted: {tally.batches}; they go on at the endpoint, rerun to take their replies")
    elif tally.stopped:
        reporter.warn("interrupted: replies in flight were waited for and stored; rerun to go on")
    reporter.result({"generate": {**asdict(tally), "prompts": len(prompts.rows), "duplicates": prompts.duplicates}})


def show_resampled(reporter: Reporter, generation: Generation, result: "Resampled") -> None:
    """What the rounds came to, and the prompts that nobody solved."""
    until = generation.until_correct
    wanted = "1 correct reply" if until is None or until.correct == 1 else f"{until.correct} correct replies"
    rounds = "1 round" if result.rounds == 1 else f"{result.rounds} rounds"
    most = "" if until is None or result.limit else f" after {until.samples} samples"
    reporter.line(
        f"resample: {rounds}; {result.enough:,} of {result.prompts:,} prompts have {wanted} at every temperature, "
        f"{result.lacking:,} fewer{most}, {result.unsolved:,} not one"
    )
    if result.untold:
        reporter.line(
            f"  {result.untold:,} were not asked again: no gold, or none of their replies was called correct or wrong"
        )
    if result.limit:
        reporter.warn(f"resampling ended at {result.limit}; replies are kept, rerun with a larger limit to go on")
    reporter.result({"resample": asdict(result)})


def show_scored(reporter: Reporter, result: "ScoreResult") -> None:
    """Statuses of the scores."""
    statuses = ", ".join(f"{number:,} {status}" for status, number in result.statuses.items()) or "no replies"
    reporter.line(f"score: {result.scored:,} new; {statuses}")
    for status, reason in result.reasons.items():
        reporter.line(f"  {status}, most often: {reason}")
    if "no_student_logprobs" in result.statuses:
        reporter.line("  builder score --retry asks the student's server again, once it bears more")
    for remark, number in result.notes.items():
        said = f"{number:,} scores with a remark: {remark}"
        reporter.warn(said) if "quantised" in remark else reporter.line(f"  {said}")
    again = result.rescored
    if again.replies or again.failed:
        cost = f", ${again.cost_usd:.2f}" if again.cost_usd is not None else ""
        reporter.line(
            f"  rescored by the teacher: {again.replies:,} replies, {again.tokens:,} tokens read{cost}"
            + (f"; {again.failed:,} could not be (table logprobs says why)" if again.failed else "")
        )
    reporter.result({"score": asdict(result)})


def show_verified(reporter: Reporter, result: "VerifyResult") -> None:
    """Verdicts."""
    verdicts = ", ".join(f"{number:,} {verdict}" for verdict, number in result.verdicts.items()) or "no verdicts"
    open_golds = sum(result.not_verifiable.values()) + result.without_gold
    for line in folded(f"verify: {result.computed:,} new; {verdicts}", _WIDTH):
        reporter.line(line)
    if open_golds:
        reporter.line(f"  {open_golds:,} without a gold that a verifier here reads")
    if result.for_judge:
        reporter.line(f"  {result.for_judge:,} for the judge")
    if result.sandbox_problem:
        reporter.warn(f"{result.not_run:,} programs have no verdict: {result.sandbox_problem}")
    reporter.result({"verify": asdict(result)})


def show_selected(reporter: Reporter, result: "SelectionResult") -> None:
    """The funnel, the stages, and what tells the selector from length."""
    for warning in result.warnings:
        reporter.warn(warning)
    stages = [tuple(asdict(stage).values()) for stage in result.stages]
    if not result.replies and all(stage.kind == "grpo" for stage in result.stages):
        reporter.table("select: stages of prompts", ("stage", "kind", "rows"), [stage[:3] for stage in stages])
        reporter.result({"select": asdict(result)})
        return
    reporter.table(
        f"select: {result.replies:,} replies → {result.survivors:,} survivors → {result.kept:,} kept",
        ("rule", "breaks", "only it", "tokens"),
        [(row.rule_name, row.breaks, row.breaks_alone, row.tokens) for row in result.funnel],
    )
    reporter.table("", ("stage", "kind", "rows", "tokens"), stages)
    if result.quotas:
        quotas = [(one.stage, one.domain or "none", one.asked, one.survivors, one.rows) for one in result.quotas]
        reporter.table("", ("stage", "domain", "asked", "survive", "taken"), quotas)
    for one in result.thinking:
        null = f" (the condition is NULL for {one.undecided:,})" if one.undecided else ""
        kept = f"{one.with_thoughts:,} rows with their thoughts, {one.answer_only:,} as the answer alone"
        reporter.line(f"stage {one.stage}: {kept}{null}")
    reporter.table(
        "",
        ("completion tokens", "median", "mean"),
        [
            ("kept", result.median_tokens_kept, result.mean_tokens_kept),
            ("outranked", result.median_tokens_outranked, result.mean_tokens_outranked),
            ("not kept, in all", result.median_tokens_dropped, result.mean_tokens_dropped),
        ],
    )
    reporter.table("", (f"{result.prompts:,} prompts", ""), decided(asdict(result)))
    if result.pairs is not None:
        reporter.line(result.pairs.line())
    if result.rewrites is not None:
        reporter.line(result.rewrites.line())
    if result.mixed_rows is not None:
        broken = ", ".join(f"{name} {number:,}" for name, number in result.continuations.items())
        others = f"; others break {broken}" if broken else ""
        reporter.line(f"mixed policy: {result.mixed_rows:,} continuations break no rule{others}")
    reporter.result({"select": asdict(result)})


def decided(totals: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Prompts by what decided them, in words, from the totals of a SelectionResult: selector, tie-break, or nothing."""
    if totals["prompts_with_spread"] is None:
        choice = totals["prompts"] - totals["prompts_without"] - totals["prompts_single"]
        rows = [(f"with several candidates; what {totals['selector']} ranks by is not measured", choice)]
    else:
        rows = [
            (f"decided by {totals['selector']}", totals["prompts_with_spread"]),
            ("decided by its tie-break: all candidates tie", totals["prompts_tied"]),
        ]
    return [*rows, ("with a single candidate", totals["prompts_single"]), ("without one", totals["prompts_without"])]


def show_mixed(reporter: Reporter, result: "MixResult") -> None:
    """What became of the rollouts."""
    room = f"; {result.no_room:,} more leave no room in the student's context" if result.no_room else ""
    empty = f", {result.empty:,} of them empty" if result.empty else ""
    outcomes = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in result.outcomes.items())
    reporter.line(f"mix: {result.questions:,} questions rolled out{empty}{room}; {result.hit_cap:,} hit their cap")
    reporter.line(f"  {outcomes}; {result.continued:,} continued by the teacher ({result.adapter})")
    reporter.result({"mix": asdict(result)})


def show_released(reporter: Reporter, release: "Release") -> None:
    """Configs of the release with their sizes, and where it is."""
    for warning in release.warnings:
        reporter.warn(warning)
    manifest = release.manifest
    tokens = {stage["config"]: stage["tokens"] for stage in manifest["schedule"]}
    sizes: dict[str, list[int]] = {config: [0, 0, 0] for config in tokens}
    for file in manifest["files"]:
        top, _, rest = file["path"].partition("/")
        if top == "data":
            config, _, name = rest.partition("/")
            size = sizes.setdefault(f"{config}, held out" if name.startswith("validation-") else config, [0, 0, 0])
            size[:] = [size[0] + file["rows"], size[1] + 1, size[2] + file["bytes"]]
    rows = [
        (config, rows, "" if tokens.get(config) is None else tokens[config], files, f"{size / 1e6:,.1f}")
        for config, (rows, files, size) in sizes.items()
    ]
    what = "written to" if release.is_new else "nothing new, the rows are those at"
    reporter.table(f"release {release.version}", ("config", "rows", "student tokens", "files", "MB"), rows)
    reporter.line(f"release: {release.version}, {what} {release.path}")
    if gone := manifest.get("withdrawn"):
        reporter.line(
            f"  withdrawn and left out: {len(gone):,} {'prompt or reply' if len(gone) == 1 else 'prompts or replies'}"
        )
    said = {"version": release.version, "path": str(release.path), "is_new": release.is_new}
    reporter.result({"release": said | {"warnings": list(release.warnings)}})


def show_probe(reporter: Reporter, result: "ProbeResult") -> None:
    """Abilities and the steps they allow."""
    words = {True: "yes", False: "no", None: "unclear"}
    reporter.table(
        f"{result.url} serving {result.model}",
        ("ability", "works", "seen"),
        [(finding.name, words[finding.works], finding.seen) for finding in result.findings],
    )
    reporter.table("", ("step", "possible", "because it"), [(s.name, words[s.works], s.seen) for s in result.steps])
    reporter.result({"probe": asdict(result) | {"steps": [asdict(step) for step in result.steps]}})
