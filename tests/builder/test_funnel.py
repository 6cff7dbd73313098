"""The funnel told apart: every group adds up to the funnel in all."""

import json

import pytest
from release_toys import Selected, recipe

from builder.config import Selection
from builder.console import Reporter
from builder.errors import UsageError
from builder.funnel import FunnelRow, check_grouping, funnel_by, show_funnel_by
from builder.selection import select


def test_groups_hold_what_each_rule_breaks_among_their_replies(made: Selected) -> None:
    rows = {(*row.group, row.rule_name): row for row in funnel_by(made[0], ["domain", "temperature"])}
    assert rows["math", 1.0, "answer_wrong"] == FunnelRow(("math", 1.0), "answer_wrong", 6, 3, 3, 63)
    assert rows["math", 0.6, "(kept)"] == FunnelRow(("math", 0.6), "(kept)", 6, 3, None, 63)
    assert ("math", 0.6, "answer_wrong") not in rows


@pytest.mark.parametrize("by", [["domain"], ["temperature"], ["temperature", "domain", "domain"]])
def test_groups_add_up_to_the_funnel_in_all(made: Selected, by: list[str]) -> None:
    run, _ = made
    rules = Selection(rules=["answer_wrong", "too_long_for_student"], params={"max_student_tokens": 40})
    result = select(run, recipe(selection=rules))
    found = funnel_by(run, by)
    for rule in result.funnel:
        rows = [row for row in found if row.rule_name == rule.rule_name]
        assert sum(row.breaks for row in rows) == rule.breaks > 0
        assert sum(row.breaks_alone or 0 for row in rows) == rule.breaks_alone
        assert sum(row.tokens for row in rows) == rule.tokens
    assert sum(row.replies for row in {row.group: row for row in found}.values()) == result.replies


def test_it_prints_80_columns_and_the_same_as_json(made: Selected, capsys: pytest.CaptureFixture[str]) -> None:
    rows = funnel_by(made[0], ["temperature"])
    show_funnel_by(Reporter(), ["temperature"], rows)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.split() == ["1.0", "answer_wrong", "3", "50.0%", "3", "63"] for line in lines)
    reporter = Reporter(as_json=True)
    show_funnel_by(reporter, ["temperature"], rows)
    reporter.finish()
    told = json.loads(capsys.readouterr().out)["funnel_by"]
    assert {"temperature": 1.0, "rule_name": "answer_wrong", "breaks": 3}.items() <= told[2].items()


def test_a_group_that_there_is_not_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="'domian'; did you mean 'domain'"):
        check_grouping(["domian"])
