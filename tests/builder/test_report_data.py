"""What the report's script reads, what DuckDB counts for the page, and releases reported by their data alone."""

import base64
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import assume, example, given
from hypothesis import strategies as st
from release_toys import Selected, recipe
from score_toys import prompt, reply
from test_report import Page, page_of, sentences_of, with_sentences
from typer.testing import CliRunner

from builder.cli import app
from builder.errors import ReleaseError
from builder.release import release
from builder.report import collect, collect_release
from builder.report_index import data_block, packed
from builder.store import columns_table


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Databases of published releases stay with the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_sentences_on_the_page_are_those_of_the_replies(made: Selected) -> None:
    run = with_sentences(made)
    found = json.loads(Page(page_of(run)).data)
    rows = {row["response_id"]: row for row in run.read("responses").to_dicts()}
    assert {one["id"] for one in found["replies"]} == set(rows)
    for one in found["replies"]:
        for part in ("reasoning", "answer"):
            assert "".join(text for _, text in one["parts"][part]) == rows[one["id"]][part]
        scores = [np.frombuffer(base64.b64decode(one[name]), "<f4").tolist() for name in ("teacher", "student")]
        wanted = sentences_of(rows[one["id"]])
        assert scores == [np.array(wanted[name], "<f4").tolist() for name in ("p_teacher", "p_student")]
        assert [number for number, _ in one["parts"]["reasoning"]][:2] == [1, 2]


def unpacked(column: dict[str, Any]) -> list[float | None]:
    values = np.frombuffer(base64.b64decode(column["data"]), f"<{column['type']}")
    missing = np.iinfo(values.dtype).max if column["type"][0] == "u" else np.iinfo(values.dtype).min
    return [None if value == missing else value / column["scale"] for value in values.tolist()]


@given(st.lists(st.one_of(st.none(), st.floats(-3, 3), st.integers(0, 4_000_000_000)), min_size=1))
@example([None])
@example([255, None])
@example([254, 0])
@example([-32768, None])
def test_packed_numbers_come_back_rounded_and_missing_ones_missing(values: list[float | None]) -> None:
    low = min((value for value in values if value is not None), default=0)
    high = max((value for value in values if value is not None), default=0)
    assume(low >= 0 or high < 200_000)
    found = unpacked(packed(values, 10_000 if high < 200_000 else 1))
    assert [one is None for one in found] == [one is None for one in values]
    for one, value in zip(found, values, strict=True):
        assert one is None or one == pytest.approx(value, abs=1)
        assert high >= 200_000 or one is None or one == pytest.approx(value, abs=0.000051)


def test_index_says_of_every_reply_what_the_tables_say(made: Selected) -> None:
    run = with_sentences(made)
    found = json.loads(Page(page_of(run)).data)
    columns = found["index"]
    rows = {row["response_id"]: row for row in run.read("responses").to_dicts()}
    scores = {row["response_id"]: row for row in run.read("scores").to_dicts()}
    verdicts = dict(run.read("verdicts", ["response_id", "verdict"]).iter_rows())
    broken: dict[str, list[str]] = {}
    for name, rule in run.read("rejections", ["response_id", "rule_name"]).iter_rows():
        broken.setdefault(name, []).append(rule)
    kept = dict(run.read("selection", ["grain_id", "stage"]).iter_rows())
    assert (columns["size"], len(set(columns["ids"]))) == (12, 12)
    codes = {name: unpacked(columns[name]) for name in ("temperature", "verdict", "rules", "stages")}
    for place, one in enumerate(found["replies"]):
        identity = one["id"]
        assert identity.startswith(columns["ids"][place])
        assert (
            columns["temperature"]["words"][int(codes["temperature"][place] or 0)]
            == f"{rows[identity]['temperature']:g}"
        )
        assert columns["verdict"]["words"][int(codes["verdict"][place] or 0)] == verdicts[identity]
        for name, wanted in (
            ("rules", broken.get(identity, [])),
            ("stages", [kept[identity]] if identity in kept else []),
        ):
            members = columns[name]["sets"][int(codes[name][place] or 0)]
            assert [columns[name]["words"][member] for member in members] == sorted(wanted)
        assert unpacked(columns["teacher"])[place] == scores[identity]["teacher_counts"][3]  # at margin 0.2
        assert unpacked(columns["delta"])[place] == pytest.approx(0.25)
        assert unpacked(columns["tokens"])[place] == 21


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("<>&/!-script\x00\u2028\u202e"))))
@example("</script><!--<script>\u2028\ud800")
def test_no_text_ends_the_data_block(text: str) -> None:
    block = data_block({"text": text})
    assert json.loads(block)["text"] == text
    assert not set("<>&\u2028\u2029\u202e\x00") & set(block)
    block.encode()  # no lone surrogate is left


def test_candidates_stand_together_with_rank_and_broken_rules(made: Selected) -> None:
    found = json.loads(Page(page_of(with_sentences(made))).data)
    ranks = {one["id"]: (one["rank"], one["rivals"]) for one in found["replies"]}
    # at 0.6 the second diverges more; at 1.0 it is wrong, so that the first is alone
    assert (ranks["p-0.6-1"], ranks["p-0.6-0"]) == ((1, 2), (2, 2))
    assert (ranks["p-1.0-0"], ranks["p-1.0-1"]) == ((1, 1), (None, 1))
    assert [[rule for rule, *_ in one["broken"]] for one in found["replies"] if one["id"] == "p-1.0-1"] == [
        ["answer_wrong"]
    ]
    groups = [one["prompt"] for one in found["replies"]]
    assert groups == sorted(groups)
    assert [one["candidates"] for one in found["prompts"]] == [4, 4, 4]


def test_texts_take_the_room_that_they_are_given_and_the_index_stays(
    made: Selected, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = json.loads(Page(page_of(with_sentences(made))).data)
    monkeypatch.setattr("builder.report._ROOM", 0)
    monkeypatch.setattr("builder.report._LEAST_ROOM", len(json.dumps(whole["replies"])) // 2)
    found = json.loads(Page(page_of(made[0])).data)
    assert found["prompts"] == whole["prompts"][: len(found["prompts"])]
    assert [one["id"] for one in found["replies"]] == [one["id"] for one in whole["replies"][:4]]
    assert found["index"]["size"] == 12


def test_index_is_limited_and_the_page_says_of_how_many(made: Selected, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("report", "report_index", "report_replies"):
        monkeypatch.setattr(f"builder.{module}.INDEXED", 5)
    monkeypatch.setattr("builder.report_samples.SAMPLES", 4)
    page = Page(page_of(with_sentences(made)))
    found = json.loads(page.data)
    assert (found["index"]["size"], len(found["replies"])) == (5, 4)
    assert found["index"]["ids"][:4] == [one["id"] for one in found["replies"]]
    text = re.sub(r"\s+", " ", page.text)
    assert (
        "The list holds 5 of 12 replies, the first by md5 of their id; 4 of them, all candidates of 1 prompt," in text
    )
    assert "the teacher's replies among the 5 of the index" in text


def test_a_domain_for_every_prompt_does_not_swell_the_page(made: Selected) -> None:
    run, _ = made
    many = [{**prompt(f"d{place:04}"), "domain": f"{place:04}" + "d" * 5_000} for place in range(700)]
    run.append("prompts", columns_table("prompts", many))
    run.append("responses", columns_table("responses", [reply(f"r{place:04}", f"d{place:04}") for place in range(700)]))
    found = json.loads(Page(page_of(run)).data)["index"]
    assert (len(found["domain"]["words"]), found["domain"]["words"][-1]) == (501, "others")
    assert "math" in found["domain"]["words"]  # of twelve replies, so no other
    assert max(map(len, found["domain"]["words"])) == 100
    assert len({*unpacked(found["domain"])}) == 501


def test_selectors_keep_equal_rows_and_overlap_with_the_first(made: Selected) -> None:
    found = {one.selector: one for one in collect(with_sentences(made), recipe()).selectors}
    assert list(found) == ["teacher_sentence_count", "random", "longest", "length_matched"]
    assert {one.rows for one in found.values()} == {6}
    assert {one.with_choice for one in found.values()} == {3}  # at 1.0 one of two is wrong
    first = found["teacher_sentence_count"]
    assert (first.overlap, first.teacher_sentences, first.correct) == (1.0, 6.5, 1.0)  # 7 at 0.6, 6 at 1.0
    assert found["longest"].overlap == 0.0  # all are as long, so the first by id


def test_a_release_is_reported_by_its_data_alone(made: Selected, tmp_path: Path) -> None:
    run, result = made
    path = release(run, recipe(), result).path
    found = collect_release(str(path))
    ours = collect(run, recipe())
    assert (found.kind, found.kept, found.candidates, found.counts.replies) == ("release", 6, 12, 12)
    # the toy's scores name more sentences than its texts have, which a release counts
    alike = [[replace(one, teacher_share=None) for one in page.selectors] for page in (found, ours)]
    assert alike[0] == alike[1]
    assert found.distributions == ours.distributions
    assert [one["id"] for one in found.data["replies"]] == [one["id"] for one in ours.data["replies"]]
    assert found.throughput is None
    out = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", str(path), "--out", str(out)])
    assert done.exit_code == 0, done.output
    page = Page(out.read_text("utf-8"))
    assert not page.open
    assert "Report of a release" in page.text
    assert "so its texts are not coloured" in page.text


def test_a_release_without_candidates_shows_what_was_chosen(made: Selected) -> None:
    run, result = made
    path = release(run, recipe(), result).path
    manifest = json.loads((path / ".builder" / "manifest.json").read_text("utf-8"))
    manifest["files"] = [file for file in manifest["files"] if "candidates" not in file["path"]]
    (path / ".builder" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    found = collect_release(str(path))
    assert (found.candidates, found.kept, found.selectors) == (6, 6, ())
    assert {one["id"] for one in found.data["replies"]} == set(run.read("selection", ["grain_id"])["grain_id"])
    rows = {row["response_id"]: row for row in run.read("responses").to_dicts()}
    for one in found.data["replies"]:
        ((_, text, _),) = one["parts"]["answer"]
        assert rows[one["id"]]["reasoning"] in text
        assert [message[:2] for message in found.data["prompts"][one["prompt"]]["messages"]][-1][0] == "user"


def test_a_damaged_manifest_is_named(made: Selected) -> None:
    run, result = made
    path = release(run, recipe(), result).path
    manifest = json.loads((path / ".builder" / "manifest.json").read_text("utf-8"))
    del manifest["funnel"]
    (path / ".builder" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ReleaseError, match=r"KeyError: 'funnel'"):
        collect_release(str(path))


def test_a_dataset_has_no_recipe_to_change(made: Selected) -> None:
    run, result = made
    path = release(run, recipe(), result).path
    done = CliRunner().invoke(app, ["report", str(path), "selection.keep=2"])
    assert (done.exit_code, "no recipe to change" in done.output) == (2, True)


def test_before_and_after_are_shown_where_they_are_asked_for(made: Selected, tmp_path: Path) -> None:
    run = made[0]
    text = yaml.safe_dump(
        {
            **recipe().resolved(),
            "stages": {"low": {"where": "temperature = 0.6"}, "high": {"where": "temperature = 1.0"}},
        }
    )
    (tmp_path / "toy.yaml").write_text(text, encoding="utf-8")
    line = ["report", str(tmp_path / "toy.yaml"), "--run", str(run.root), "--out", str(tmp_path / "page.html")]
    done = CliRunner().invoke(app, [*line, "--with", "selection.selector=longest", "--debug"])
    assert done.exit_code == 0, done.output
    page = re.sub(r"\s+", " ", Page((tmp_path / "page.html").read_text("utf-8")).text)
    assert "B is toy with selection.selector=longest" in page
    assert "Replies: 3 in both, 3 only in A, 3 only in B" in page


def test_cost_and_throughput_add_up_over_time(made: Selected) -> None:
    found = collect(made[0], recipe()).throughput
    assert found is not None
    assert (sum(found.replies), sum(found.tokens)) == (12, 12 * 21)
    assert found.cost_usd is not None
    assert found.cost_usd[-1] == pytest.approx(0.012)
    assert list(found.cost_usd) == sorted(found.cost_usd)
    assert (found.unit, len(found.replies)) == ("5 minutes", 13)  # replies of hour 0 and of hour 1
