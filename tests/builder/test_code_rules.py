"""Rules and selectors in Python: the same funnel and the same checks as SQL, and never run without leave."""

from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from test_selection import PROMPTS, kept, make_run, recipe, shuffled

from builder.code_rules import candidates, load_code
from builder.decision import plan_selection
from builder.errors import SqlError, UsageError
from builder.selection import RuleFunnel, select
from builder.store import Run

RULE = '''
import polars as pl

def rule(candidates: pl.LazyFrame, min_tokens: int = 150) -> pl.LazyFrame:
    """Drop short replies.

    min_tokens: completion tokens
    """
    short = candidates.filter(pl.col("completion_tokens") < min_tokens)
    return short.select("response_id", observed="completion_tokens", threshold=pl.lit(min_tokens))
'''
SELECTOR = '''
import polars as pl

def selector(survivors):
    """The shortest first."""
    order = pl.struct("completion_tokens", "response_id").rank("ordinal").over("prompt_id", "temperature")
    return survivors.select("response_id", rank=order)
'''


def folder(path: Path, **files: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / f"{name}.py").write_text(text, encoding="utf-8")
    return path


def test_a_rule_and_a_selector_in_python_join_the_funnel_beside_sql(tmp_path: Path) -> None:
    run, own = make_run(tmp_path / "run"), folder(tmp_path / "own", too_short=RULE, shortest=SELECTOR)
    mine = recipe(rules=["response_truncated", "too_short.py"], selector="shortest.py")
    result = select(run, mine, recipe_dir=own, allow_code=True)
    assert result.funnel == (
        RuleFunnel("response_truncated", breaks=2, breaks_alone=2, tokens=1000),
        RuleFunnel("too_short", breaks=4, breaks_alone=4, tokens=400),
    )
    assert kept(run) == ["b"]
    assert result.prompts_tied is None
    rejected = run.read("rejections").filter(pl.col("rule_name") == "too_short").rows()
    assert rejected[0] == ("a", "too_short", 100.0, 150.0, 0)
    lower = recipe(rules=["too_short.py"], selector="shortest.py", params={"min_tokens": 50})
    select(run, lower, recipe_dir=own, allow_code=True)
    assert kept(run) == shuffled("aeh")  # Polars ranks the unknown length of h first
    select(
        run,
        recipe(rules=["too_short.py"], selector="shortest.py", order="selector-first"),
        recipe_dir=own,
        allow_code=True,
    )
    assert kept(run) == ["h"]  # a and e rank first in their groups, and are too short


def test_code_is_refused_before_any_work_and_never_run_to_be_read(tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    text = f"open({str(trap)!r}, 'w')\n{RULE}"
    own = folder(tmp_path / "own", too_short=text)
    with pytest.raises(UsageError, match=r"too_short.*--allow-code"):
        select(Run(tmp_path / "run"), recipe(rules=["too_short.py"]), recipe_dir=own)
    plan = plan_selection(recipe(rules=["too_short.py"]), own)
    assert not trap.exists() and not (tmp_path / "run").exists()
    (parameter,) = plan.rules[0].parameters
    assert (parameter.name, parameter.type, parameter.default, parameter.unit) == (
        "min_tokens", "BIGINT", "150", "completion tokens",
    )  # fmt: skip
    assert plan.rules[0].purpose == "Drop short replies."
    other = plan_selection(recipe(rules=["too_short.py"], params={"min_tokens": 3}), own)
    assert other.selection_id != plan.selection_id


@pytest.mark.parametrize(
    ("params", "message"),
    [({"min_token": 3}, "did you mean 'min_tokens'"), ({"min_tokens": "many"}, "min_tokens is bigint")],
)
def test_parameters_of_python_rules_are_checked_as_those_of_sql(
    tmp_path: Path, params: dict[str, Any], message: str
) -> None:
    own = folder(tmp_path, too_short=RULE)
    with pytest.raises(UsageError, match=message):
        plan_selection(recipe(rules=["too_short.py"], params=params), own)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def rule(x)\n    pass", r"(?s)expected ':'\nLINE 1: def rule\(x\)\n +\^"),
        ("x = 1", "must define one function rule"),
        ("def rule():\n    'doc'", "must define one function rule"),
        ("def rule(c):\n    return c", "no docstring"),
        ("def rule(c, n=3):\n    'Doc.'", "no unit of n"),
        ("def rule(c, n):\n    'Doc.'", "needs a name and a default"),
        ("def rule(c, *, n):\n    'Doc.'", "parameter n needs a number"),
        ("def rule(c, n=[]):\n    'Doc.'", "parameter n needs a number"),
        ("def rule(c, **more):\n    'Doc.'", "needs a name and a default"),
    ],
)
def test_a_file_that_breaks_its_contract_says_how(text: str, message: str) -> None:
    with pytest.raises(SqlError, match=message):
        load_code("rules", Path("mine.py"), text)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 3", "returns int; it must return response_id, observed, threshold"),
        ("return c.select('response_id')", "returns columns response_id; it must return"),
        ("return c.select('no_such_column')", r"fails.*ColumnNotFoundError.*no_such_column"),
        ("return 1 / 0", "fails in line 5: ZeroDivisionError"),
        ("return rows('z')", "response_id z, which is not a reply of this run"),
        ("return rows('a', 'a')", "response_id a 2 times"),
        ("return rows(None, 'a')", "returns 1 rows whose response_id is NULL"),
        ("return rows('a').with_columns(observed=pl.lit('many'))", "fails.*many"),
    ],
)
def test_what_a_python_rule_does_wrong_is_named_and_nothing_is_written(tmp_path: Path, body: str, message: str) -> None:
    text = (
        "import polars as pl\ndef rows(*ids): return pl.DataFrame({'response_id': ids, 'observed': [1.0] * len(ids), "
        f"'threshold': [1.0] * len(ids)}}, schema_overrides={{'response_id': pl.String}})\ndef rule(c):\n"
        f"    'Doc.'; {body}\n"
    )
    text = text.replace("    'Doc.'; ", "    'Doc.'\n    ")
    run, own = make_run(tmp_path / "run"), folder(tmp_path / "own", mine=text)
    with pytest.raises(SqlError, match=rf"(?s)rule mine \(.*{message}"):
        select(run, recipe(rules=["mine.py"]), recipe_dir=own, allow_code=True)
    assert run.parts("rejections") == []


def test_a_rule_sees_the_rows_and_columns_of_stg_candidates(tmp_path: Path) -> None:
    run, mine = make_run(tmp_path), recipe()
    select(run, mine)
    with duckdb.connect(str(run.database), read_only=True) as connection:
        rows = connection.sql("from stg_candidates order by response_id").pl()
    found = candidates(run, mine).sort("response_id").collect()
    assert sorted(found.columns) == sorted(rows.columns)
    assert found.height == 8 and set(found["prompt_id"]) == {prompt["prompt_id"] for prompt in PROMPTS}
    assert found.select(rows.columns).rows() == rows.rows()
