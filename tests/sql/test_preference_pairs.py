"""What a reward stage takes of the judged pairs: a case worked by hand, and lengths that end equal for any pairs."""

import hashlib
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builder.rules import catalogue, load_sql
from builder.staging import build_staging
from builder.store import Run

FILE = catalogue("mix")["preference_pairs"]
CASE = yaml.safe_load((Path(__file__).parent / "cases" / "mix" / "preference_pairs.yaml").read_text(encoding="utf-8"))
Row = dict[str, Any]
Pairs = list[tuple[int, int]]
"""Completion tokens of chosen and rejected."""


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Run(tmp_path_factory.mktemp("run"))
    build_staging(run, {})
    return run.database


def taken(empty: Path, tables: dict[str, list[Row]], params: dict[str, Any]) -> list[tuple[str, str]]:
    """What the file says of these rows, in tables of the types that staging gives them."""
    with duckdb.connect() as connection:
        connection.execute("set threads = 1")
        connection.execute(f"attach '{empty}' as run (read_only)")
        for name in ("stg_pairs", "stg_responses", "stg_rejections"):
            connection.execute(f"create table {name} as from run.{name}")
            if tables.get(name):
                connection.register("rows", pa.Table.from_pylist(tables[name]))
                connection.execute(f"insert into {name} by name from rows")
        for name, value in params.items():
            connection.execute(f"set variable {name} = ?", [value])
        return connection.execute(FILE.read_text(encoding="utf-8")).fetchall()


def tables_of(pairs: Pairs) -> dict[str, list[Row]]:
    """Pairs p0, p1, … with a gap of 3."""
    replies = [
        {"response_id": f"{side}{place}", "completion_tokens": tokens}
        for place, lengths in enumerate(pairs)
        for side, tokens in zip("cr", lengths, strict=True)
    ]
    rows = [
        {"pair_id": f"p{place}", "chosen_id": f"c{place}", "rejected_id": f"r{place}", "gap": 3.0}
        for place in range(len(pairs))
    ]
    return {"stg_pairs": rows, "stg_responses": replies}


def by_definition(pairs: Pairs, seed: int) -> set[str]:
    """The same one pair at a time: the largest difference of the longer side that what is left still holds."""
    differences = {f"p{place}": chosen - rejected for place, (chosen, rejected) in enumerate(pairs)}
    surplus = sum(differences.values())
    side = [name for name, tokens in differences.items() if tokens * surplus > 0]
    rest, gone = abs(surplus), set()
    for name in sorted(side, key=lambda name: (-abs(differences[name]), order(name, seed), name)):
        if abs(differences[name]) <= rest:
            rest -= abs(differences[name])
            gone.add(name)
    return differences.keys() - gone


def order(name: str, seed: int) -> str:
    return hashlib.md5(f"{name}:{seed}".encode()).hexdigest()


@pytest.mark.parametrize("case", [CASE, *CASE["with_params"]], ids=lambda case: str(case.get("params", "defaults")))
def test_the_case_is_as_worked_by_hand(case: dict[str, Any], empty: Path) -> None:
    assert [dict(zip(("grain_id", "stage"), row, strict=True)) for row in taken(
        empty, CASE["given"], case.get("params", {})
    )] == case["expect"]  # fmt: skip


def test_the_case_tries_every_parameter_a_null_a_tie_and_the_exact_gap() -> None:
    tried = {name for case in CASE["with_params"] for name in case["params"]}
    assert tried == {parameter.name for parameter in load_sql("mix", FILE).parameters}
    gaps = {row["pair_id"]: row["gap"] for row in CASE["given"]["stg_pairs"]}
    assert (gaps["tied"], gaps["exact"]) == (0, 1)
    assert None in [row["completion_tokens"] for row in CASE["given"]["stg_responses"]]


LENGTHS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), max_size=25)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=LENGTHS, seed=st.integers(0, 3))
def test_sums_end_closer_than_any_pair_of_the_longer_side_and_as_by_definition(
    empty: Path, pairs: Pairs, seed: int
) -> None:
    kept = {name for name, _ in taken(empty, tables_of(pairs), {"seed": seed})}
    assert kept == by_definition(pairs, seed)
    before = sum(chosen - rejected for chosen, rejected in pairs)
    left = [chosen - rejected for place, (chosen, rejected) in enumerate(pairs) if f"p{place}" in kept]
    assert 0 <= abs(sum(left)) <= abs(before)
    assert all(abs(sum(left)) < abs(one) for one in left if one * before > 0)
    of_the_shorter = {
        f"p{place}" for place, (chosen, rejected) in enumerate(pairs) if (chosen - rejected) * before <= 0
    }
    assert of_the_shorter <= kept


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=LENGTHS)
def test_chosen_and_rejected_exchanged_lose_the_same_pairs(empty: Path, pairs: Pairs) -> None:
    exchanged = [(rejected, chosen) for chosen, rejected in pairs]
    assert taken(empty, tables_of(pairs), {}) == taken(empty, tables_of(exchanged), {})


def test_of_many_pairs_few_leave_and_means_differ_by_less_than_a_tenth_of_a_token(empty: Path) -> None:
    pairs = [(400 + int(order(str(place), 0)[:4], 16) % 300, 500) for place in range(2000)]
    kept = {name for name, _ in taken(empty, tables_of(pairs), {})}
    left = [pair for place, pair in enumerate(pairs) if f"p{place}" in kept]
    means = [sum(side) / len(left) for side in zip(*left, strict=True)]
    assert abs(means[0] - means[1]) < 0.1
    assert 1200 < len(left) < 2000
