"""What `builder sql` prints fits a terminal of 80 columns."""

import pytest
from release_toys import Selected, recipe

from builder.console import Reporter
from builder.sqlshell import show_query


@pytest.mark.parametrize(("columns", "stacked"), [(3, False), (12, True)])
def test_a_row_of_many_columns_is_shown_one_name_a_line(
    made: Selected, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int, stacked: bool
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = [f"quite_a_name_{place}" for place in range(columns)]
    query = f"select {', '.join(f'{place} as {name}' for place, name in enumerate(names))}"
    show_query(Reporter(), made[0], recipe(), query, None)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.split() == [names[1], "1"] for line in lines) == stacked
    assert any(line.split() == names for line in lines) != stacked
    assert lines[-1].strip() == "1 rows"
