"""What `builder explain` prints: at most 80 columns, the answer first."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from builder.console import Reporter
from builder.explain import Candidate, Explanation, RuleVerdict
from builder.grid import folded, grid, plain, text_of

_LONG: Final = ("reasoning", "answer")
_ID_CHARS: Final = 8


def show_explanation(reporter: Reporter, found: Explanation, *, with_text: bool = False) -> None:
    """Outcome, reply, rules, candidates, stages; with `with_text` the question and the whole reply."""
    for warning in found.warnings:
        reporter.warn(warning)
    if found.stored is False:
        reporter.warn("the latest select had other settings: this is what builder select with these would decide")
    width = reporter.out.width
    for line in _lines(found, width, with_text):
        reporter.line(line)
    values = asdict(found)
    if not with_text:
        values["reply"] = {name: value for name, value in values["reply"].items() if name not in _LONG}
    reporter.result({"explain": plain(values)})


def _lines(found: Explanation, width: int, with_text: bool) -> list[str]:
    lines = [f"{found.response_id}", *folded(found.outcome, width)]
    if found.stored is None:
        lines.append("Nothing is selected yet: this is what builder select would decide.")
    lines += ["", *_about(found, width)]
    if found.rules:
        lines += ["", "rules", *(line for rule in found.rules for line in _rule(rule, width))]
    if found.candidates:
        lines += ["", *_candidates(found, width)]
    for one in found.rewrites:
        lines += ["", *folded(f"rewrite: {one['response_id']} of reply {one['original_id']} ({one['outcome']})", width)]
    for rollout in found.rollouts:
        lines += ["", *_rollout(rollout, width)]
    lines += ["", "stages", *_stages(found, width)]
    if with_text:
        for message in found.prompt.get("messages", []):
            lines += ["", f"── {message['role']}", *_text(message["content"], width)]
        for name in _LONG:
            if found.reply[name] is not None:
                lines += ["", f"── {name}", *_text(found.reply[name], width)]
    return lines


def _about(found: Explanation, width: int) -> list[str]:
    reply, score, verdict, prompt = found.reply, found.score, found.verdict, found.prompt
    question = (prompt.get("messages") or [{"content": ""}])[-1]["content"]
    sampled = f"{reply['role']}, {reply['model']}, temperature {reply['temperature']}, sample {reply['sample_index']}"
    counts = found.prompt_verdicts
    ended = f"{text_of(reply['completion_tokens'])} tokens, finish_reason {text_of(reply['finish_reason'])}"
    pairs = [
        ("prompt", f"{reply['prompt_id']} ({prompt.get('domain') or 'no domain'}): {' '.join(question.split())}"),
        ("", f"{counts['replies']:,} teacher replies, {counts['correct']:,} correct, {counts['wrong']:,} wrong"),
        ("reply", f"{sampled}, {ended}"),
        ("score", _score(score, found)),
        ("verdict", _verdict(verdict, prompt)),
    ]
    lines = []
    for name, text in pairs:
        head, *rest = folded(text, width - 9, 3)
        lines += [f"{name:<9}{head}", *(f"{'':9}{line}" for line in rest)]
    return lines


def _score(score: Mapping[str, Any], found: Explanation) -> str:
    if not score:
        return "none by this student; builder score makes it" if found.reply["role"] != "student" else "none"
    remark = f" ({score['status_detail']})" if score["status_detail"] else ""
    if score["status"] != "ok":
        return f"{score['status']}{remark}"
    return (
        f"ok{remark}: mean_delta {text_of(score['mean_delta'])}, {text_of(score['log_ratio_nats'])} nats a token, "
        f"{score['sentence_count']} sentences, {score['short_sentences']} of them short"
    )


def _verdict(verdict: Mapping[str, Any], prompt: Mapping[str, Any]) -> str:
    gold = f"gold {prompt['gold']!r}" if prompt.get("gold") is not None else "the prompt has no gold"
    if not verdict:
        return f"none; {gold}" + ("; builder verify makes it" if prompt.get("gold") is not None else "")
    return f"{verdict['verdict']} by {verdict['verifier']}: extracted {text_of(verdict['extracted'])}, {gold}"


def _rule(rule: RuleVerdict, width: int) -> list[str]:
    saw = [f"{name} {text_of(value)}" for name, value in rule.saw.items()]
    allows = [f"{name} {text_of(value)}" for name, value in rule.allows.items()]
    if rule.observed is not None or rule.threshold is not None:
        saw.insert(0, f"observed {text_of(rule.observed)}, threshold {text_of(rule.threshold)}")
    text = ", ".join(saw) + (f" ({', '.join(allows)})" if allows else "")
    head, *rest = folded(text, width - 32, 4)
    lead = f"  {'BREAKS' if rule.is_broken else 'ok':<7}{rule.rule_name:<22} "
    if len(lead) > 32:
        return [lead.rstrip(), *(f"{'':32}{line}" for line in (head, *rest) if line)]
    return [f"{lead}{head}".rstrip(), *(f"{'':32}{line}" for line in rest)]


def _candidates(found: Explanation, width: int) -> list[str]:
    first = found.candidates[0]
    rows = [
        (
            ">" if one.response_id == found.response_id else "",
            one.response_id[:_ID_CHARS],
            one.rank,
            one.teacher_sentences,
            one.mean_delta,
            one.completion_tokens,
            one.verdict,
            _state(one, found),
        )
        for one in found.candidates
    ]
    columns = ("", "id", "rank", "teacher", "mean_delta", "tokens", "verdict", "kept or why not")
    when = "after the rules" if found.order == "rules-first" else "before the rules"
    title = (
        f"candidates at temperature {first.temperature}, ranked by {found.selector} {when}; column teacher: sentences "
        f"that the teacher finds likelier than the student does, by more than {found.margin:g}"
    )
    lines = [*folded(title, width), *grid(columns, rows, width).lines]
    if all(one.breaks for one in found.candidates):
        lines.append("No candidate survives the rules: at this temperature the prompt gives no row.")
    return lines


def _state(one: Candidate, found: Explanation) -> str:
    kinds = {place.stage: place.kind for place in found.places}
    if one.stages:
        return "kept" if any(kinds[stage] == "sft" for stage in one.stages) else "in a pair"
    if one.breaks:
        return f"breaks {', '.join(one.breaks)}"
    if one.rank is not None and one.rank > found.keep:
        return "outranked"
    return "in no stage"


def _rollout(rollout: Mapping[str, Any], width: int) -> list[str]:
    cut = f", cut after {rollout['cut_share']:.0%} of its tokens" if rollout["cut_share"] is not None else ""
    text = (
        f"mixed policy: rollout {rollout['response_id']} of the student ({rollout['outcome']}, "
        f"{rollout['student_tokens']:,} tokens of at most {rollout['length_cap']:,}{cut}), measured by the kept reply "
        f"{rollout['reference_id']}; the teacher's continuation: {rollout['continuation_id'] or 'none'}"
    )
    return folded(text, width)


def _stages(found: Explanation, width: int) -> list[str]:
    lines = []
    what = {"sft": "the reply", "grpo": "its prompt", "reward": "a pair of it"}
    for place in found.places:
        where = "position" if len(place.positions) == 1 else "positions"
        at = f" at {where} {', '.join(f'{one:,}' for one in place.positions)}" if place.positions else ""
        held = what[place.kind] if place.rows == 1 else f"{place.rows:,} pairs of it"
        held = f"{held}{at}" if place.is_taken else "not in it"
        text = f"{held}{f'  (where {place.where})' if place.where else ''}"
        head, *rest = folded(text, width - 22, 3)
        lines += [f"  {place.stage:<18}  {head}".rstrip(), *(f"{'':22}{line}" for line in rest)]
    return lines


def _text(text: str, width: int) -> list[str]:
    return folded(text, width, len(text) + 1)
