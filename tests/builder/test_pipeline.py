"""Steps in a row: what one says when it is done, and what stops the next."""

import json
from pathlib import Path

import pytest
from score_toys import REPLIES, byte_level, make_run, recipe, save_student
from tokenizers import Tokenizer, normalizers

from builder.config import Selection
from builder.console import Reporter
from builder.errors import ScoreError
from builder.pipeline import Steps


def lossy() -> Tokenizer:
    """Deletes a part of every text."""
    result = byte_level()
    result.normalizer = normalizers.Replace("e", "")
    return result


def test_a_tokenizer_that_cannot_round_trip_stops_a_selection_by_divergence_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = save_student(tmp_path / "student", tokenizer=lossy())
    run = make_run(tmp_path / "run", REPLIES)
    with pytest.raises(ScoreError, match=f"None of {len(REPLIES)} replies could be scored"):
        Steps(run, recipe(student), tmp_path, Reporter()).score()
    assert "align_error, most often: student: no token covers 'e'" in capsys.readouterr().out
    assert run.rows("scores") == run.rows("responses") == len(REPLIES)


def test_the_same_replies_pass_where_the_selection_does_not_need_scores(tmp_path: Path) -> None:
    student = save_student(tmp_path / "student", tokenizer=lossy())
    run = make_run(tmp_path / "run", REPLIES)
    at_random = recipe(student).model_copy(update={"selection": Selection(selector="random")})
    found = Steps(run, at_random, tmp_path, Reporter(quiet=True)).score()
    assert found.nothing_scored
    (event,) = [json.loads(line) for line in (run.root / "events.jsonl").read_text("utf-8").split("\n") if line]
    assert event["step"] == "score" and event["statuses"] == {"align_error": len(REPLIES)}
