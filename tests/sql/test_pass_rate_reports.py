"""Reports on how often the teacher is right: literal rows, on a plain DuckDB connection."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from test_reports import Row, empty, report

__all__ = ["empty"]  # the fixture


def judged(verdicts: dict[str, Sequence[str | None]], **more: object) -> dict[str, list[Row]]:
    """Teacher replies of prompts by their verdicts in order of sample_index; None: no verdict."""
    given: dict[str, list[Row]] = {"stg_responses": [], "stg_verdicts": []}
    for prompt, said in verdicts.items():
        for index, verdict in enumerate(said):
            name = f"{prompt}{index}"
            reply = {"response_id": name, "prompt_id": prompt, "role": "teacher", "temperature": 0.6}
            given["stg_responses"].append(reply | {"sample_index": index} | more)
            if verdict is not None:
                row = {"response_id": name, "verifier": "math", "verdict": verdict, "decides": True}
                given["stg_verdicts"].append(row)
    return given


C, W, U = "correct", "wrong", "unscorable"


def test_pass_rate_bins_prompts_and_keeps_what_nobody_can_tell_apart(empty: Path) -> None:
    given = judged({"a": [C, C], "b": [C, W], "n": [W, W, U], "u": [U, None], "t": [C, *[W] * 9]})
    given["stg_prompts"] = [{"prompt_id": name, "domain": "math"} for name in "abnt"]
    rows = [tuple(row.values()) for row in report(empty, "pass_rate", given)]
    assert [row for row in rows if row[0] is None] == [
        (None, None, 0.0, 0.0, 1, 0.25, 0, 2, 1, 0),
        (None, None, 0.1, 0.2, 1, 0.25, 1, 9, 0, 0),
        (None, None, 0.5, 0.6, 1, 0.25, 1, 1, 0, 0),
        (None, None, 1.0, 1.0, 1, 0.25, 2, 0, 0, 0),
        (None, None, None, None, 1, None, 0, 0, 1, 1),
    ]
    assert [row[:5] for row in rows if row[0] == "unknown"] == [("unknown", 0.6, None, None, 1)]
    assert sum(row[4] for row in rows if row[0] == "math") == 4


@pytest.mark.parametrize(
    ("correct", "replies", "expect"),
    [(1, 11, (0.0, 0.1)), (1, 10, (0.1, 0.2)), (3, 10, (0.3, 0.4)), (29, 100, (0.2, 0.3)), (9, 10, (0.9, 1.0))],
)
def test_a_rate_on_a_border_is_in_the_bin_that_begins_there(
    empty: Path, correct: int, replies: int, expect: tuple[float, float]
) -> None:
    first, *_ = report(empty, "pass_rate", judged({"p": [C] * correct + [W] * (replies - correct)}))
    assert (first["from_rate"], first["to_rate"]) == expect


def test_a_prompt_counts_once_over_its_temperatures_and_once_at_each(empty: Path) -> None:
    cold, hot = judged({"p": [C, C]}), judged({"p": [W, W]}, temperature=1.0)
    for row in [*hot["stg_responses"], *hot["stg_verdicts"]]:
        row["response_id"] += "hot"
    given = {table: cold[table] + hot[table] for table in cold}
    rows = report(empty, "pass_rate", given)
    assert [(row["temperature"], row["from_rate"], row["prompts"]) for row in rows] == [
        (None, 0.5, 1),
        (0.6, 1.0, 1),
        (1.0, 0.0, 1),
    ]


def test_verdicts_that_do_not_decide_and_replies_of_others_do_not_count(empty: Path) -> None:
    given = judged({"p": [C, C]})
    given["stg_verdicts"].append({"response_id": "p0", "verifier": "judge", "verdict": W, "decides": False})
    student = judged({"p": [W]}, role="student")
    for row in [*student["stg_responses"], *student["stg_verdicts"]]:
        row["response_id"] = "s"
    given = {table: given[table] + student[table] for table in given}
    for name in ("pass_rate", "difficulty_shift"):
        assert report(empty, name, given)[0]["prompts"] == 1
    assert report(empty, "pass_rate", given)[0]["from_rate"] == 1.0


def test_first_samples_leaves_out_what_rounds_asked_later(empty: Path) -> None:
    given = judged({"p": [W, W, C]})
    assert report(empty, "pass_rate", given)[0]["from_rate"] == 0.3
    assert report(empty, "pass_rate", given, first_samples=2)[0]["from_rate"] == 0.0
    assert report(empty, "difficulty_shift", given, first_samples=2)[0]["mean_rate"] == 0.0


def test_difficulty_shift_compares_all_prompts_with_those_kept_and_with_their_rows(empty: Path) -> None:
    given = judged({"e": [C, C, C, C], "h": [C, W, W, W], "n": [W, W, W, W], "u": [U]})
    given["stg_selection"] = [{"stage": "s", "kind": "sft", "grain_id": name} for name in ("e0", "e1", "e2", "h0")]
    given["stg_selection"] += [{"stage": "late", "kind": "sft", "grain_id": "e0"}]  # the same reply again
    given["stg_selection"] += [{"stage": "rl", "kind": "grpo", "grain_id": "n"}]
    whole, *bins = report(empty, "difficulty_shift", given)
    assert (whole["prompts"], whole["kept_prompts"], whole["kept_rows"]) == (3, 2, 4)
    assert whole["mean_rate"] == pytest.approx((1 + 0.25 + 0) / 3)
    assert whole["kept_prompt_mean"] == pytest.approx((1 + 0.25) / 2)
    assert whole["kept_row_mean"] == pytest.approx((3 * 1 + 0.25) / 4)
    assert whole["reading"] == "mean pass rate 0.42 of prompts, 0.62 of those kept, 0.81 of kept rows"
    assert [(row["from_rate"], row["kept_prompts"], row["kept_rows"], row["kept_row_share"]) for row in bins] == [
        (0.0, 0, 0, 0.0),
        (0.2, 1, 1, 0.25),
        (1.0, 1, 3, 0.75),
    ]
    assert sum(row["share"] for row in bins) == pytest.approx(1)


def test_without_a_selection_the_shift_says_so(empty: Path) -> None:
    whole, _ = report(empty, "difficulty_shift", judged({"e": [C]}))
    assert (whole["kept_prompt_share"], whole["kept_row_mean"]) == (None, None)
    assert whole["reading"] == "nothing of these prompts is kept"


def answered(
    answers: Sequence[tuple[str | None, str]], gold: str = "5", verifier: str = "math"
) -> dict[str, list[Row]]:
    given = judged({"p": [verdict for _, verdict in answers]})
    for row, (answer, _) in zip(given["stg_verdicts"], answers, strict=True):
        row |= {"gold": gold, "extracted": answer, "verifier": verifier}
    return given | {"stg_prompts": [{"prompt_id": "p", "domain": "math"}]}


def test_gold_suspect_names_a_gold_that_the_teachers_own_agreement_contradicts(empty: Path) -> None:
    given = answered([("7", W), (" 7 ", W), ("7", W), ("5", C)])
    (row,) = report(empty, "gold_suspect", given)
    assert tuple(row.values()) == ("p", "math", "5", "7", 0.75, 4, 1)
    assert report(empty, "gold_suspect", given, min_agreement=0.8) == []
    assert report(empty, "gold_suspect", given, min_answers=5) == []


@pytest.mark.parametrize(
    ("answers", "verifier"),
    [
        ([("5", C), ("5", C), ("5", C), ("7", W)], "math"),  # they agree with the gold
        ([("7", W), ("8", W), ("9", W), ("6", W)], "math"),  # they agree on nothing
        ([(None, W)] * 4, "math"),  # no answer is no agreement
        ([("7", W), ("7", W), ("7", W), (None, W), (None, W)], "math"),  # 3 of 5
        ([("7", U)] * 4, "math"),  # nobody can tell: the gold does not disagree
        ([("7", W), ("7", W), ("7", W), ("7", U)], "math"),  # three that count
        ([("en", W)] * 4, "language"),  # the language of a reply is no answer
    ],
)
def test_a_gold_without_such_agreement_is_no_suspect(
    empty: Path, answers: list[tuple[str | None, str]], verifier: str
) -> None:
    assert report(empty, "gold_suspect", answered(answers, verifier=verifier)) == []
