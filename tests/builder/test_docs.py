"""The numbers of docs/divergence.md follow from each other, by the code that scores."""

import re
from pathlib import Path

import numpy as np
import pytest

from builder.divergence import divergence
from builder.schema import MARGINS
from builder.text import sentence_byte_ends

PAGE = (Path(__file__).parents[2] / "docs" / "divergence.md").read_text(encoding="utf-8")
TEXT = PAGE.split("```\n")[1].rstrip("\n")


def numbers(line: str) -> list[float]:
    cells = [cell.strip().replace("−", "-") for cell in line.strip("|").split("|")]
    return [float(cell) for cell in cells if re.fullmatch(r"-?[\d.]+", cell)]


def rows(start: str) -> list[list[float]]:
    """Numbers of the table's rows that begin so."""
    return [numbers(line) for line in PAGE.split("\n") if re.match(rf"\| ({start}) \|", line)]


def test_the_text_has_the_sentences_of_the_table() -> None:
    ends = sentence_byte_ends(TEXT)
    assert ends == [42, 111, 162, 185, 201]
    starts = [0, *ends[:-1]]
    shown = re.findall(r"^\| \d \| (.*?)(?:…)? \|", PAGE, re.MULTILINE)
    assert len(shown) == len(ends)
    for start, end, words in zip(starts, ends, shown, strict=True):
        assert TEXT.encode()[start:end].decode().strip().startswith(words.strip())


def test_probabilities_of_the_fourth_sentence_follow_from_its_tokens() -> None:
    teacher, student = rows("teacher|student")
    for given, place in ((teacher, 4), (student, 5)):
        *logprobs, mean, p = given
        assert np.mean(logprobs) == pytest.approx(mean, abs=1e-4)
        assert np.exp(np.mean(logprobs)) == pytest.approx(p, abs=1e-4)
        assert rows("4")[0][place - 1] == p


def test_scores_follow_from_the_sentences() -> None:
    table = np.array(rows(r"\d"))[:, 1:]
    teacher_tokens, student_tokens = table[:, :2].astype(int).T
    index = np.arange(len(table))
    found = divergence(
        np.repeat(np.log(table[:, 2]), teacher_tokens).astype(np.float32),
        np.repeat(index, teacher_tokens),
        np.repeat(np.log(table[:, 3]), student_tokens).astype(np.float32),
        np.repeat(index, student_tokens),
        len(table),
    )
    assert found.teacher_counts == [4] * len(MARGINS)
    assert found.student_counts == [0] * len(MARGINS)
    assert found.short_sentences == 0
    assert table[:, 2] - table[:, 3] == pytest.approx(table[:, 4], abs=1.1e-4)
    assert found.mean_delta == pytest.approx(0.6741, abs=1e-4)
    assert "= 0.6741." in PAGE
    assert found.log_ratio_nats == pytest.approx(1.9268, abs=2e-3)
    assert (125.9184 - 4.5308) / teacher_tokens.sum() == pytest.approx(1.9268, abs=1e-4)
