"""Charts count every value once and carry no markup of strangers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from builder.charts import Bar, Column, Dot, bar_chart, column_chart, dot_chart, histogram, shared_bins, ticks


@given(st.lists(st.integers(0, 200_000), min_size=1))
def test_whole_numbers_fall_into_bins_of_whole_widths(values: list[int]) -> None:
    edges = shared_bins(values, whole=True)
    assert np.histogram(values, edges)[0].sum() == len(values)
    assert all(edge == int(edge) for edge in edges)
    assert edges[-1] > max(values)
    assert len(edges) <= 40


@given(st.lists(st.floats(-1, 1), min_size=1))
def test_every_difference_falls_into_a_bin(values: list[float]) -> None:
    edges = shared_bins(values)
    assert np.histogram(values, edges)[0].sum() == len(values)
    assert len(edges) <= 40


def test_bins_by_hand() -> None:
    assert shared_bins([7], whole=True) == [7, 8]
    assert shared_bins([0.3, 0.3]) == [0.3, 0.301]
    assert shared_bins([0, 10], wanted=2, whole=True) == [0, 5, 10, 15]
    assert shared_bins([-0.31, 0.28], wanted=6) == [-0.4, -0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.3]
    assert ticks(0, 100) == [0, 20, 40, 60, 80, 100]


def test_heights_are_shares_and_the_tallest_bar_fills_the_plot() -> None:
    svg = histogram([0, 1, 2], [3, 1], [1, 0], top_share=0.75, marker=0.5, title="t")
    assert svg.count('class="all"') == 2
    assert 'height="108.0" class="all"' in svg
    assert 'height="36.0" class="all"' in svg
    assert 'height="36.0" class="kept"' in svg


def test_columns_are_filled_from_below_by_their_shares() -> None:
    svg = column_chart([Column("1", (0.25, 0.75)), Column("2", (0.0, 1.0))], ("low", "high"), "t")
    assert svg.count('class="low"') == 1
    assert 'y="107.0" height="33.0" class="low"' in svg
    assert 'y="8.0" height="99.0" class="high"' in svg
    assert 'y="8.0" height="132.0" class="high"' in svg


def test_labels_are_escaped() -> None:
    evil = '"><script>alert(1)</script>'
    for svg in (
        dot_chart([Dot(evil, 0.5, 0.4, 0.6)], evil),
        bar_chart([Bar(evil, 3, evil)], evil),
        histogram([0, 1], [1], [0], top_share=1, marker=None, title=evil),
        column_chart([Column(evil, (1.0,))], ("low",), evil),
    ):
        assert "<script" not in svg
        assert "&lt;script&gt;" in svg
