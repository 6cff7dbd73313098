"""Where rollouts are cut, and which are kept."""

import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from score_toys import byte_level

from builder.prefix import Prefix
from builder.rollout import Rollout, cut, is_edge, is_kept
from builder.text import THINK_CLOSE, THINK_OPEN

TOKENIZER = byte_level()
SHARE = (0.5, 1.0)


def rollout(text: str, hit_cap: bool = True) -> Rollout:
    return Rollout(text, [end for _, end in TOKENIZER.encode(text, add_special_tokens=False).offsets], hit_cap)


def share_kept(found: Rollout, end: int) -> float:
    return sum(token_end <= end for token_end in found.token_ends) / len(found.token_ends)


prose = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="<>"), min_size=1, max_size=12), min_size=1, max_size=40
).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(prose, st.none() | prose, st.integers(0, 9))
def test_a_cut_ends_a_token_and_a_word_in_the_second_half(thinking: str, answer: str | None, seed: int) -> None:
    text = Prefix(thinking.strip(), answer and answer.strip()).text
    found = rollout(text)
    end = cut(found, "r-1", SHARE, seed)
    if end is None:
        return
    kept, rest = text[:end], text[end:]
    assert end in found.token_ends
    assert 0.5 <= share_kept(found, end) < 1
    assert rest and not kept[-1].isspace()
    kept.encode()  # no half of a surrogate pair
    assert not unicodedata.combining(rest[0])
    for tag in (THINK_OPEN, THINK_CLOSE):
        assert kept.count(tag) + rest.count(tag) == text.count(tag)
    assert not kept.endswith(THINK_CLOSE)
    assert Prefix.of(kept).text == kept


def test_cuts_are_spread_evenly_over_the_second_half() -> None:
    found = rollout("<think>\n" + "One and two is three. " * 50 + "Done")
    shares = [share_kept(found, end) for index in range(400) if (end := cut(found, f"r-{index}", SHARE, 0))]
    assert len(shares) == 400
    below = sum(share < 0.75 for share in shares)
    assert 150 < below < 250  # 200 expected; five standard deviations are 50


def test_the_same_rollout_is_cut_at_the_same_place_and_another_seed_cuts_elsewhere() -> None:
    found = rollout("<think>\n" + "One and two is three. " * 50)
    places = {(identity, seed): cut(found, identity, SHARE, seed) for identity in "ab" for seed in (0, 1)}
    assert places == {(identity, seed): cut(found, identity, SHARE, seed) for identity in "ab" for seed in (0, 1)}
    assert len(set(places.values())) > 1


@pytest.mark.parametrize("text", ["", "word", "<think>\n" + "x" * 400, "<think>\na\n</think>\n\nb"])
def test_a_rollout_without_an_edge_in_range_is_not_cut(text: str) -> None:
    assert cut(rollout(text), "r", SHARE, 0) is None


def test_scripts_without_spaces_are_cut_between_characters() -> None:
    text = "<think>\n" + "每个苹果三元所以六元" * 20
    ends = {cut(rollout(text), f"r-{index}", SHARE, 0) for index in range(20)}
    assert None not in ends and len(ends) > 5


@pytest.mark.parametrize(
    ("text", "end", "edge"),
    [
        ("a b", 1, True), ("a b", 2, False), ("ab c", 1, False), ("12.5 x", 2, False), ("a", 1, False),
        ("a b", 0, False),
        ("苹果", 1, True), ("苹\u0301", 1, False), ("苹\u200d果", 1, False), ("苹\u200d果", 2, False), ("x苹", 1, True),
    ],
)  # fmt: skip
def test_edges(text: str, end: int, edge: bool) -> None:
    assert is_edge(text, end) is edge


@pytest.mark.parametrize(
    ("keep", "kept"),
    [("cap", [True, True, False, False]), ("wrong", [False, False, True, False]), ("all", [True] * 4),
     ("cap_or_wrong", [True, True, True, False])],
)  # fmt: skip
def test_keep_decides_by_the_cap_and_the_verdict(keep: str, kept: list[bool]) -> None:
    cases: list[tuple[bool, Any]] = [(True, "wrong"), (True, "unscorable"), (False, "wrong"), (False, None)]
    assert [is_kept(rollout("a b", hit), verdict, keep) for hit, verdict in cases] == kept
