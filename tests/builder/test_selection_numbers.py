"""Where select works with numbers in place of ids, or with counts in place of rows, it decides and says the same."""

import random
import statistics
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from test_selection import STUDENT_ID, prompt, recipe, reply

from builder.decision import decide, plan_selection, prepare
from builder.rules import catalogue
from builder.schema import MARGINS
from builder.selection import _mean_and_median
from builder.sqlrun import query
from builder.store import Run, columns_table

SELECTORS = catalogue("selectors")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """48 replies to three prompts at two temperatures, with few values, so that much ties; some are cut, some have no
    score. Ids sort otherwise than the rows stand."""
    chance = random.Random(7)
    run = Run(tmp_path_factory.mktemp("run"))
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in ("responses", "scores", "sentences")}
    for name in chance.sample(range(100, 1000), 48):
        made = reply(
            f"r{name}",
            chance.choice("pqr"),
            chance.choice([0.6, 1.0]),
            finish_reason=chance.choice(["stop", "stop", "stop", "length"]),
            completion_tokens=chance.choice([None, 80, 100, 100, 120, 300]),
        )
        tables["responses"].append(made)
        if chance.random() < 0.2:
            continue
        lists: dict[str, Any] = {side: [chance.choice([0.25, 0.375, 0.75]) for _ in range(4)] for side in SIDES}
        lists |= {"teacher_tokens": [5, 5, 2, 5], "student_tokens": [5, 5, 5, 5], "byte_end": [1, 2, 3, 4]}
        deltas = [teacher - student for teacher, student in zip(*(lists[side] for side in SIDES), strict=True)]
        del deltas[2]  # the short one
        own = {"response_id": made["response_id"], "student_id": STUDENT_ID}
        tables["sentences"].append(own | lists)
        tables["scores"].append(
            own
            | {
                "status": "ok",
                "sentence_count": 4,
                "short_sentences": 1,
                "teacher_counts": [sum(delta > margin for delta in deltas) for margin in MARGINS],
                "student_counts": [sum(-delta > margin for delta in deltas) for margin in MARGINS],
                "mean_delta": sum(deltas) / len(deltas),
            }
        )
    for name, rows in {"prompts": [prompt(name) for name in "pqr"], **tables}.items():
        run.append(name, columns_table(name, rows))
    return run


SIDES = ("p_teacher", "p_student")


def chosen(run: Run, folder: Path | None, **selection: Any) -> list[tuple[Any, ...]]:
    """Kept replies with rank and position, by a selection that breaks no contract."""
    asked = recipe(keep=2, rules=["response_truncated"], **selection)
    plan = plan_selection(asked, folder)
    prepare(run, asked, plan)
    rows: pa.Table = decide(run, asked, plan, counts=False).tables["selection_rows"]
    return [(row["grain_id"], row["rank"], row["position"]) for row in rows.to_pylist()]


@pytest.mark.parametrize(
    ("selector", "params", "order"),
    [
        *((name, {}, "rules-first") for name in SELECTORS),
        ("teacher_share", {"teacher_margin": 0.12}, "selector-first"),
    ],
)
def test_a_packaged_selector_chooses_by_numbers_what_a_copy_of_its_file_chooses_by_ids(
    run: Run, tmp_path: Path, selector: str, params: dict[str, float], order: str
) -> None:
    (tmp_path / "copy.sql").write_text(SELECTORS[selector].read_text(encoding="utf-8"))
    by_numbers = chosen(run, None, selector=selector, params=params, order=order)
    assert len({name for name, _, _ in by_numbers}) == len(by_numbers) > 5
    assert by_numbers == chosen(run, tmp_path, selector="copy.sql", params=params, order=order)


def test_views_of_survivors_say_the_same_inside_and_outside_the_sandbox(run: Run) -> None:
    chosen(run, None)  # brings run.duckdb up to date
    for sql in (
        SELECTORS["teacher_sentence_count"].read_text(encoding="utf-8"),
        "select * from stg_scores_of_survivors",
        "select reply_id, count(*) as sentences, count(delta) as counted from stg_sentences_of_survivors group by all",
    ):
        with duckdb.connect(str(run.database), read_only=True) as connection:
            plain = connection.execute(sql).fetchall()
        inside = [tuple(row.values()) for row in query(run.database, sql).to_pylist()]
        assert len(plain) > 30
        assert sorted(map(str, inside)) == sorted(map(str, plain))


def test_mean_and_median_of_counted_values_are_those_of_the_values() -> None:
    chance = random.Random(3)
    for size in (1, 2, 3, 4, 9, 50, 51):
        values = sorted(chance.choice([1, 2, 3, 7, 500]) for _ in range(size))
        counted = [(value, values.count(value)) for value in (0, 1, 2, 3, 7, 500)]
        assert _mean_and_median(counted) == (statistics.fmean(values), statistics.median(values))
    assert _mean_and_median([]) == _mean_and_median([(3, 0)]) == (None, None)
