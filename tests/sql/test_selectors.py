"""Selectors: case files worked by hand, and a plain Python ranking of random rows, on a plain DuckDB connection."""

import hashlib
import random
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
import yaml

from builder.resources import resource
from builder.rules import catalogue, load_sql
from builder.schema import MARGINS
from builder.staging import build_staging
from builder.store import Run

CASES = Path(__file__).parent / "cases"
SELECTORS = catalogue("selectors")
BY_MARGIN = ("teacher_sentence_count", "teacher_share", "length_matched", "fewest_teacher_sentences")
Row = dict[str, Any]
Tables = dict[str, list[Row]]


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Run(tmp_path_factory.mktemp("run"))
    build_staging(run, {})
    return run.database


def ranks(empty: Path, tables: Tables, selector: str, params: dict[str, Any]) -> dict[str, int]:
    """What the file says of these rows, in tables of the types that staging gives them."""
    with duckdb.connect() as connection:
        connection.execute(f"attach '{empty}' as run (read_only)")
        for name in ("survivors", "stg_responses", "stg_scores", "stg_sentences"):
            connection.execute(f"create table {name} as from run.{name}")
            if tables.get(name):
                connection.register("rows", pa.Table.from_pylist(tables[name]))
                connection.execute(f"insert into {name} by name from rows")
        connection.execute(
            "insert into stg_responses by name from survivors anti join (from stg_responses) as given "
            "using (response_id)"
        )
        connection.execute("update stg_scores set student_id = 'mine'; set variable student_id = 'mine'")
        connection.execute("create view scores as from stg_scores")
        for name in ("reply_numbers", "stg_scores_of_survivors", "stg_sentences_of_survivors"):
            sql = resource("sql", "staging", f"{name}.sql").read_text(encoding="utf-8")
            connection.execute(f"create view {name} as {sql}")
        for name, value in params.items():
            connection.execute(f"set variable {name} = ?", [value])
        return dict(connection.execute(SELECTORS[selector].read_text(encoding="utf-8")).fetchall())


@pytest.mark.parametrize("name", SELECTORS)
def test_selector_ranks_its_case_as_worked_by_hand(name: str, empty: Path) -> None:
    case = yaml.safe_load((CASES / f"{name}.yaml").read_text(encoding="utf-8"))
    for params, expect in (
        ({}, case["expect"]),
        *([tuple(case["with_params"].values())] if "with_params" in case else []),
    ):
        assert ranks(empty, case["given"], name, params) == {row["response_id"]: row["rank"] for row in expect}


@pytest.mark.parametrize("name", SELECTORS)
def test_case_file_has_a_null_a_clean_row_and_a_tie_and_tries_every_parameter(name: str) -> None:
    case = yaml.safe_load((CASES / f"{name}.yaml").read_text(encoding="utf-8"))
    rows = [row for rows in case["given"].values() for row in rows]
    assert {"clean", "exact", "tied", "null"} <= {row["response_id"] for row in rows}
    assert any(value is None for row in rows for value in row.values())
    parameters = {parameter.name for parameter in load_sql("selectors", SELECTORS[name]).parameters}
    assert set(case.get("with_params", {}).get("params", {})) == parameters


def made_up(seed: int) -> Tables:
    """Random replies of three prompts at two temperatures, few values, so that everything ties often."""
    chance = random.Random(seed)
    tables: Tables = defaultdict(list)
    for index in range(48):
        name = hashlib.md5(f"{seed} {index}".encode()).hexdigest()
        group = {"prompt_id": chance.choice("pqr"), "temperature": chance.choice([0.6, 1.0])}
        tokens = chance.choice([None, 80, 100, 100, 120, 300])
        tables["survivors"].append({"response_id": name, **group})
        tables["stg_responses"].append({"response_id": name, **group, "completion_tokens": tokens})
        count = chance.randint(1, 6)
        lists: Row = {side: [chance.choice([0.25, 0.5, 0.625, 1.0]) for _ in range(count)] for side in SIDES}
        lists |= {side: [chance.choice([2, 3, 5]) for _ in range(count)] for side in TOKENS}
        status = chance.choice(["ok"] * 7 + ["align_error"])
        if status == "ok":
            tables["stg_sentences"].append({"response_id": name, **lists})
        deltas = counted(lists)
        tables["stg_scores"].append(
            {
                "response_id": name, "status": status, "sentence_count": count, "short_sentences": count - len(deltas),
                "teacher_counts": [sum(delta > margin for delta in deltas) for margin in MARGINS],
                "student_counts": [sum(-delta > margin for delta in deltas) for margin in MARGINS],
                "mean_delta": sum(deltas) / len(deltas) if deltas else None,
            }
        )  # fmt: skip
    return tables


SIDES = ("p_teacher", "p_student")
TOKENS = ("teacher_tokens", "student_tokens")


def counted(lists: Row) -> list[float]:
    """p_teacher − p_student of the sentences that are not short."""
    rows = zip(*(lists[name] for name in (*SIDES, *TOKENS)), strict=True)
    return [teacher - student for teacher, student, *tokens in rows if min(tokens) >= 3]


def plain_ranking(tables: Tables, selector: str, margin: float, seed: int) -> dict[str, int]:
    """The same by definition: sort each prompt and temperature, None last."""
    lists = {row["response_id"]: row for row in tables["stg_sentences"]}
    scores = {row["response_id"]: row for row in tables["stg_scores"]}
    tokens = {row["response_id"]: row["completion_tokens"] for row in tables["stg_responses"]}
    groups: dict[tuple[str, float], list[str]] = defaultdict(list)
    for row in tables["survivors"]:
        groups[row["prompt_id"], row["temperature"]].append(row["response_id"])

    def last(value: float | None, sign: int = 1) -> tuple[bool, float]:
        return (value is None, sign * (value or 0))

    result = {}
    for names in groups.values():
        known = [tokens[name] for name in names if tokens[name] is not None]
        usual = statistics.median(known) if known else 0

        def key(name: str, usual: float = usual) -> tuple[Any, ...]:
            scored = name in lists
            deltas = counted(lists[name]) if scored else []
            more = sum(delta > margin for delta in deltas) if scored else None
            less = sum(-delta > margin for delta in deltas) if scored else None
            ties = (last(scores[name]["mean_delta"] if scored else None, -1), last(less), name)
            outside = tokens[name] is None or abs(tokens[name] - usual) > 0.2 * usual
            by_name: dict[str, Callable[[], tuple[Any, ...]]] = {
                "teacher_sentence_count": lambda: (last(more, -1), *ties),
                "fewest_teacher_sentences": lambda: (last(more), *ties),
                "teacher_share": lambda: (last(more / len(deltas) if deltas and more is not None else None, -1), *ties),
                "length_matched": lambda: (outside, last(more, -1), *ties),
                "mean_delta": lambda: (ties[0], name),
                "longest": lambda: (last(tokens[name], -1), name),
                "random": lambda: (hashlib.md5(f"{name}:{seed}".encode()).hexdigest(), name),
            }
            return by_name[selector]()

        result |= {name: place for place, name in enumerate(sorted(names, key=key), 1)}
    return result


@pytest.mark.parametrize("selector", SELECTORS)
def test_selector_ranks_as_its_definition_does_at_margins_stored_and_not(selector: str, empty: Path) -> None:
    for seed, margin in enumerate([0.1, 0.5, 0.125, 0.0, 0.37]):
        tables = made_up(seed)
        found = ranks(empty, tables, selector, {"teacher_margin": margin, "seed": seed})
        assert found == plain_ranking(tables, selector, margin, seed)


@pytest.mark.parametrize("selector", BY_MARGIN)
@pytest.mark.parametrize("margin", [-0.1, 1.0, 2])
def test_a_margin_that_is_no_difference_of_probabilities_is_an_error(empty: Path, selector: str, margin: float) -> None:
    with pytest.raises(duckdb.Error, match=r"teacher_margin is .* difference of probabilities"):
        ranks(empty, made_up(0), selector, {"teacher_margin": margin})


@pytest.mark.parametrize("selector", BY_MARGIN)
def test_a_score_without_its_sentences_is_an_error_only_where_they_must_be_counted(empty: Path, selector: str) -> None:
    tables = {name: rows for name, rows in made_up(0).items() if name != "stg_sentences"}
    assert len(ranks(empty, tables, selector, {"teacher_margin": 0.15})) == 48
    with pytest.raises(duckdb.Error, match=r"no row in stg_sentences.*rerun builder score"):
        ranks(empty, tables, selector, {"teacher_margin": 0.16})
