"""The report: one file, right numbers, and strangers' text shown as text."""

import base64
import hashlib
import json
import os
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from release_toys import Selected, fill, recipe
from score_toys import prompt, reply
from typer.testing import CliRunner

from builder.cli import app
from builder.errors import TableError, UsageError
from builder.models import student_id
from builder.release import release
from builder.report import collect
from builder.report_numbers import Measured, readings
from builder.report_page import visible, write_report
from builder.report_sql import Place, provenance
from builder.rules import catalogue
from builder.sqlrun import query
from builder.staging import build_staging, staging_variables
from builder.store import Run, columns_table
from builder.text import canonical_text, sentence_byte_ends

VOID = {"meta", "rect", "line", "circle", "br", "path", "input"}
EVIL = (
    "</style></div><script>alert(1)</script><svg onload=alert(2)><img src=x onerror=alert(3)>"
    "\"' \u202etxet\x00 \r\n&amp; {{ 7 * 7 }}"
)


class Page(HTMLParser):
    """What a browser makes of a page: its tags, whether they nest, and the text within marked elements."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.shown = ""
        self.data = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            self.data += data if self.tags[-1][1].get("type") == "application/json" else ""
            return
        self.text += data
        self.shown += chr(int(data[2:], 16)) if self.open and self.open[-1] == "b" else data


def sentences_of(row: dict[str, Any]) -> dict[str, Any]:
    """Scores of the sentences of a reply: the first is the student's, the others the teacher's."""
    ends = sentence_byte_ends(canonical_text(row["reasoning"], row["answer"]))
    share = [0.2] + [0.9] * (len(ends) - 1)
    return {
        "response_id": row["response_id"], "student_id": student_id(recipe().require_student()), "byte_end": ends,
        "teacher_tokens": [5] * len(ends), "student_tokens": [4] * len(ends), "p_teacher": share,
        "p_student": [0.5] * len(ends),
    }  # fmt: skip


def with_sentences(made: Selected) -> Run:
    run, result = made
    replies = run.scan("responses").filter(pl.col("role") == "teacher").collect().to_dicts()
    run.append("sentences", columns_table("sentences", [sentences_of(row) for row in replies]))
    run.event("select", asdict(result))
    return run


def evaluation(model: str, correct: int, low: float, high: float, **changes: Any) -> Measured:
    found = Measured(model, 200, 200, correct, 0, correct / 200, low, high, temperature=1.0, samples=1)
    return replace(found, **changes)


def evaluate(run: Run, *found: Measured) -> None:
    """Files of eval/ whose names sort against their times."""
    run.eval_dir.mkdir()
    for index, one in enumerate(found):
        path = run.eval_dir / f"{9 - index}.json"
        path.write_text(json.dumps({**asdict(one), "model_sha256": None, "cut": 0}), encoding="utf-8")
        os.utime(path, (1_000_000 + index, 1_000_000 + index))


def page_of(run: Run, **changes: Any) -> str:
    return write_report(collect(run, recipe(**changes)), run.report).read_text("utf-8")


def test_page_is_one_file_that_asks_for_nothing_and_nests(made: Selected) -> None:
    run = with_sentences(made)
    evaluate(run, evaluation("student", 10, 0.02, 0.09))
    release(run, recipe(), made[1])
    text = page_of(run)
    assert not re.search(r"https?://|@import|url\(", text)
    page = Page(text)
    assert not page.open
    assert not {"link", "img", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert [values for tag, values in page.tags if tag == "script"] == [{"type": "application/json", "id": "data"}, {}]
    assert not any("style" in values for _, values in page.tags)  # which the policy would refuse
    assert all(values["href"].startswith("#") for tag, values in page.tags if tag == "a" and values["href"] is not None)
    ids = [values["id"] for _, values in page.tags if "id" in values]
    assert len(ids) == len(set(ids))
    assert all(values["href"][1:] in ids for tag, values in page.tags if tag == "a" and values["href"])
    assert all("scope" in values for tag, values in page.tags if tag == "th")
    labelled = {values["for"] for tag, values in page.tags if tag == "label"}
    assert labelled == {values["id"] for tag, values in page.tags if tag in ("input", "select")}
    assert str(run.root) not in text


def test_policy_allows_this_style_sheet_and_this_script_alone(made: Selected) -> None:
    text = page_of(made[0])
    (policy,) = (values["content"] or "" for tag, values in Page(text).tags if "http-equiv" in values)
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        (body,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        wanted = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{directive} 'sha256-{wanted}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_command_writes_the_page_where_it_is_asked_to(made: Selected, tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text("name: toy\nteacher: {model: org/teacher}\n", encoding="utf-8")
    line = ["report", str(tmp_path / "toy.yaml"), "--run", str(made[0].root), "--out", str(tmp_path / "page.html")]
    done = CliRunner().invoke(app, [*line, "--json"])
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"report": str(tmp_path / "page.html")})
    assert "<title>Report of run toy</title>" in (tmp_path / "page.html").read_text("utf-8")
    assert not (made[0].root / "recipe.yaml").exists()


def test_same_run_gives_the_same_page(made: Selected) -> None:
    run = with_sentences(made)
    assert page_of(run) == page_of(run)


def test_hostile_text_is_shown_as_text(tmp_path: Path) -> None:
    run, name = Run(tmp_path / "run"), '"><script>alert(4)</script>'
    rows = [reply("r1", reasoning=EVIL.strip(), answer="x" * 1_000_000, model=name, received_at=None)]
    run.append("prompts", columns_table("prompts", [{**prompt(text=EVIL), "gold": EVIL}]))
    run.append("responses", columns_table("responses", rows))
    run.append("sentences", columns_table("sentences", [sentences_of(rows[0])]))
    score = {"response_id": "r1", "student_id": student_id(recipe().require_student()), "status": "ok"}
    run.append("scores", columns_table("scores", [{**score, "mean_delta": 0.5}]))
    chosen = {"selection_id": "0", "stage": "low-temperature", "kind": "sft", "grain_id": "r1", "position": 0}
    run.append("selection", columns_table("selection", [chosen]))
    evaluate(run, evaluation(EVIL, 10, 0.02, 0.09), evaluation("b" * 100_000, 10, 0.02, 0.09))
    text = page_of(run)
    assert len(text.encode()) < 5_000_000
    page = Page(text)
    assert not page.open
    assert not {"svg", "img"} & {tag for tag, values in page.tags if "aria-label" not in values}
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    assert not any(key.startswith("on") for _, values in page.tags for key in values)
    assert "<script>alert(1)</script>" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert not set("\x00\r\u202e") & set(text)
    assert "U+202E" in page.text
    (shown,) = json.loads(page.data)["replies"]
    assert "".join(text for _, text in shown["parts"]["reasoning"]) == EVIL.strip()
    assert 900_000 < shown["hidden"] < 1_000_000  # of the megabyte
    assert "b" * 1_000 not in text


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("<>&\"'\x00\r\n\t\u202e\u2066\ufeff"))))
@example("a\r\nb\x00<i>\u202e&lt;")
def test_visible_text_is_the_text(text: str) -> None:
    page = Page(f"<span>{visible(text)}</span>")
    assert page.shown == text
    assert {tag for tag, _ in page.tags} <= {"span", "b"}


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ((0.10, 0.20), (0.21, 0.30), "apart"),
        ((0.21, 0.30), (0.10, 0.20), "apart"),
        ((0.10, 0.20), (0.20, 0.30), "noise"),  # they touch
        ((0.10, 0.30), (0.15, 0.20), "noise"),
    ],
)
def test_words_say_whether_neighbours_overlap(
    before: tuple[float, float], after: tuple[float, float], words: str
) -> None:
    (one,) = readings([evaluation("a", 30, *before), evaluation("b", 40, *after)])
    assert words in one.words
    assert one.gain == pytest.approx(0.05)


def test_evaluations_that_asked_otherwise_are_not_compared() -> None:
    cold = evaluation("b", 90, 0.4, 0.5, temperature=0.0)
    (one,) = readings([evaluation("a", 30, 0.1, 0.2), cold])
    assert "do not compare" in one.words


def test_only_evaluations_of_one_benchmark_are_compared(made: Selected) -> None:
    one, two = ({"benchmark": name, "questions_sha256": name} for name in ("sums", "words"))
    found = [
        evaluation("a", 30, 0.1, 0.2, **one),
        evaluation("a", 90, 0.4, 0.5, **two),
        evaluation("b", 60, 0.25, 0.35, **one),
    ]
    evaluate(made[0], *found, evaluation("old", 10, 0.0, 0.1))
    (reading,) = collect(made[0], recipe()).readings
    assert (reading.before, reading.after) == ("a on sums", "b on sums")
    assert reading.gain == pytest.approx(0.15)
    (reading,) = readings([found[0], replace(found[2], questions_sha256="changed")])
    assert "do not compare" in reading.words


def test_a_file_from_before_benchmarks_had_names_is_still_read(made: Selected) -> None:
    evaluate(made[0], evaluation("old", 10, 0.0, 0.1))
    (path,) = made[0].eval_dir.glob("*.json")
    values = json.loads(path.read_text())
    del values["benchmark"], values["questions_sha256"]
    path.write_text(json.dumps(values))
    assert [(one.model, one.benchmark) for one in collect(made[0], recipe()).accuracy] == [("old", None)]


def test_accuracy_is_in_order_of_time(made: Selected) -> None:
    evaluate(
        made[0], evaluation("zero", 10, 0.02, 0.09), evaluation("low", 30, 0.1, 0.2), evaluation("high", 60, 0.2, 0.4)
    )
    found = collect(made[0], recipe())
    assert [one.model for one in found.accuracy] == ["zero", "low", "high"]
    assert [one.words.split()[2] for one in found.readings] == ["are", "overlap:"]
    page = page_of(made[0])
    assert "zero → low: +10.0 points; the intervals are apart." in page
    assert "low → high: +15.0 points; the intervals overlap: at this size the difference may be noise." in page


def test_a_file_that_is_no_evaluation_is_named(made: Selected) -> None:
    made[0].eval_dir.mkdir()
    (made[0].eval_dir / "notes.json").write_text("{}", encoding="utf-8")
    with pytest.raises(TableError, match=r"notes\.json is no evaluation"):
        collect(made[0], recipe())


def test_replies_alone_make_a_page(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.append("prompts", columns_table("prompts", [prompt()]))
    run.append("responses", columns_table("responses", [reply("r", completion_tokens=None, prompt_tokens=None)]))
    text = Page(page_of(run)).text
    for sentence in ("Nothing has been selected yet", "Nothing has been released yet", "No reply here has sentence"):
        assert sentence in text
    assert "Accuracy" not in text
    assert "not counted" in text


def test_a_run_without_replies_or_without_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="builder generate"):
        collect(Run(tmp_path / "none"), recipe())
    run = Run(tmp_path / "run")
    run.append("prompts", columns_table("prompts", [prompt()]))
    with pytest.raises(TableError, match=r"no replies.*builder generate"):
        collect(run, recipe())


def test_a_folder_is_no_file_to_write(made: Selected, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"report\.html"):
        write_report(collect(made[0], recipe()), tmp_path)


def test_funnel_is_that_of_the_latest_selection(made: Selected) -> None:
    run, result = made
    run.event("select", {**asdict(result), "survivors": 1})
    run.event("select", asdict(result))
    with (run.root / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": "sel')  # torn by a crash
    found = collect(run, recipe()).funnel
    assert found is not None
    assert found.totals is not None
    assert (found.totals["survivors"], found.totals["kept"]) == (result.survivors, result.kept)
    assert [row["breaks"] for row in found.rules] == [row.breaks for row in result.funnel]
    assert found.stale is None
    assert "continued" not in page_of(run)
    run.event("select", {**asdict(result), "mixed_rows": 7})
    assert "continued, 7 break no rule" in page_of(run)


def test_a_funnel_that_the_tables_left_behind_says_so(made: Selected) -> None:
    run, result = made
    run.event("select", asdict(result))
    run.append("responses", columns_table("responses", [reply("later")]))
    assert "13 teacher replies by now" in page_of(run)
    run.event("select", {**asdict(result), "selection_id": "other"})
    assert "another selection" in page_of(run)


def test_without_an_event_the_manifest_gives_the_funnel(made: Selected) -> None:
    run, result = made
    release(run, recipe(), result)
    found = collect(run, recipe()).funnel
    assert found is not None
    assert (found.source, found.totals, found.stale) == ("release v1", None, None)
    assert [row["rule_name"] for row in found.rules] == [row.rule_name for row in result.funnel]
    assert "From release v1" in Page(page_of(run)).text


def test_distributions_share_their_bins_and_count_every_reply(made: Selected) -> None:
    found = collect(with_sentences(made), recipe()).distributions
    tokens, delta, _, probability, rates = found
    assert [one.name for one in found] == [
        "completion_tokens", "mean_delta", "distinct_4gram_share", "response_probability", "pass_rate"
    ]  # fmt: skip
    assert [part.temperature for part in tokens.histograms] == [0.6, 1.0]
    # all right at 0.6, half of them at 1.0
    assert [part.counts.index(3) for part in rates.histograms] == [8, 11, 6]
    for one in (tokens, delta, probability):
        assert [(part.replies, sum(part.kept), part.missing) for part in one.histograms] == [(6, 3, 0), (6, 3, 0)]
        assert all(len(part.counts) == len(one.edges) - 1 for part in one.histograms)
        assert not one.by_domain  # of one domain


def test_domains_have_panels_of_their_own_where_there_are_several(made: Selected) -> None:
    run, _ = made
    rows = [{**prompt(f"d{place}"), "domain": f"domain {place:02d}"} for place in range(8)]
    run.append("prompts", columns_table("prompts", rows))
    run.append("responses", columns_table("responses", [reply(f"r{place}", f"d{place}") for place in range(8)]))
    tokens = collect(run, recipe()).distributions[0]
    by_domain: dict[str, int] = {}
    for part in tokens.by_domain:
        by_domain[part.domain or ""] = by_domain.get(part.domain or "", 0) + part.replies
    assert by_domain == {"math": 12, **{f"domain {place:02d}": 1 for place in range(5)}, "other domains": 3}


def test_page_draws_what_the_sql_reports_say(made: Selected) -> None:
    run = with_sentences(made)
    found = collect(run, recipe())
    build_staging(run, staging_variables(recipe()))
    for name, shown in (("temperature", found.confidences), ("position", found.places)):
        rows = query(run.database, catalogue("reports")[name].read_text("utf-8"), {"teacher_margin": 0.2})
        assert [asdict(one) for one in shown] == [
            {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
            for row in rows.to_pylist()
        ]
    text = re.sub(r"\s+", " ", Page(page_of(run)).text)
    # first sentence of each reply is the student's, the others the teacher's
    assert "The teacher's share rises along a reply: 0% in the first tenth" in text
    assert "Temperature 0.6 too few replies to compare with 1.0: 6 where 200 are needed." in text


def test_a_run_without_sentence_scores_has_neither_curve(made: Selected) -> None:
    found = collect(made[0], recipe())
    assert (found.confidences, found.places, found.provenance) == ((), (), None)
    page = page_of(made[0])
    assert 'id="positions"' not in page
    assert "response_probability" not in page


def test_words_follow_the_teachers_share() -> None:
    def curve(*shares: float) -> list[Place]:
        return [Place("tenth", i, None, None, 9, 9, share, 1 - share, 0.0) for i, share in enumerate(shares, 1)]

    assert provenance(curve(0.6, 0.3)) == (
        "The teacher's share falls along a reply: 60% in the first tenth, 30% in the last; "
        "it is largest in tenth 1 (60%)."
    )
    assert "hardly changes" in (provenance(curve(0.30, 0.5, 0.34)) or "")
    assert "rises" in (provenance(curve(0.30, 0.36)) or "")
    assert provenance(curve(0.3)) is None


def test_funnel_says_lengths_and_who_decided_and_reads_older_events(made: Selected) -> None:
    run, result = made
    run.event("select", asdict(result))
    text = re.sub(r"\s+", " ", Page(page_of(run)).text)
    assert "Of 3 prompts: 3 decided by teacher_sentence_count; 0 decided by its tie-break" in text
    assert "median212121 mean212121" in text
    older = {name: value for name, value in asdict(result).items() if not name.startswith(("median", "prompts_"))}
    run.event("select", older)
    text = re.sub(r"\s+", " ", Page(page_of(run)).text)
    assert "mean212121" in text
    assert "median2" not in text
    assert "decided" not in text


def test_scores_of_another_student_are_named_as_such(made: Selected) -> None:
    other = {"model": "org/other", "revision": "1" * 40}
    assert "the recipe's is another" in Page(page_of(with_sentences(made), student=other)).text


def test_a_mixed_row_tells_student_and_teacher_apart(tmp_path: Path) -> None:
    run = fill(Run(tmp_path / "run"), ("p",))
    begun = reply("m", role="mixed", reasoning="Student began. Teacher went on.", answer="Three.", prefix_chars=22)
    run.append("responses", columns_table("responses", [begun]))
    chosen = {"selection_id": "0", "stage": "mixed-policy", "kind": "sft", "grain_id": "m", "position": 0}
    run.append("selection", columns_table("selection", [chosen]))
    text = re.sub(r"\s+", " ", Page(page_of(run)).text)
    assert "Reasoning, written by the student Student began." in text
    assert "Reasoning, written by the teacher Teacher went on." in text
    assert "Answer, written by the teacher Three." in text


def test_policies_of_a_release_are_counted(made: Selected) -> None:
    run, result = made
    path = release(run, recipe(), result).path / "data" / "high-temperature" / "train-00000-of-00001.parquet"
    rows = pl.read_parquet(path)
    mixed = rows.with_columns(policy=pl.Series(["mixed", *["teacher"] * (len(rows) - 1)]))
    mixed.write_parquet(path)
    (found,) = collect(run, recipe()).releases
    assert [stage["policies"] for stage in found.stages] == [{}, {"mixed": 1, "teacher": 2}]
    assert "1 mixed, 2 teacher" in Page(page_of(run)).text
