"""Tables of evaluations keep every number within 80 columns, whatever the names."""

import re
from dataclasses import replace

import pytest

from builder.console import Reporter
from builder.eval_counts import AtK
from builder.eval_paired import Paired
from builder.eval_tables import show_ceilings, show_evaluations, show_paired
from builder.eval_teacher import Ceiling
from builder.evaluate import Evaluation

AT = AtK(64, 10_000, 1.0, 0.9996, 1.0, 0.985, 0.98, 0.99)
LONG = "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B after low-temperature"
ONE = Evaluation(
    questions=10_000, replies=640_000, correct=99, unscorable=12_345, pass_at_1=1.0, low=0.9996, high=1.0,
    mean_tokens=1.0, cut=12_345, at_k=(AT,), model=LONG, model_sha256=None, benchmark="olympiad-bench-physics-en",
    temperature=0.6, samples=64, left_out=0, duplicates=0, settings={}, verifiers={}, questions_sha256="", folder="a",
    role="eval",
)  # fmt: skip
ROW = Paired("olympiad-bench-physics-en", LONG, LONG, 10_000, 1, -0.5, -0.505, -0.495, 1_234, 6_234, "worse", 0.005)


@pytest.fixture
def reporter(monkeypatch: pytest.MonkeyPatch) -> Reporter:
    monkeypatch.setenv("COLUMNS", "80")
    return Reporter()


def test_no_number_is_lost_within_80_columns(reporter: Reporter, capsys: pytest.CaptureFixture[str]) -> None:
    ceiling = Ceiling(
        **{name: getattr(ONE, name) for name in Ceiling.__dataclass_fields__ if name != "model"}, model=LONG
    )
    show_evaluations(reporter, [ONE, replace(ONE, benchmark="another-long-name-of-a-benchmark", samples=64)])
    show_ceilings(reporter, [ceiling, replace(ceiling, model="another-teacher-with-a-long-name")])
    show_paired(reporter, [[ROW, replace(ROW, verdict="no difference shown", low=-1.0, high=1.0, would_see=1.0)]])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "left out" not in text
    assert text.count("100.0–100.0") == 4 and text.count("98.5") == 4 and text.count("12,345") == 8
    assert re.search(r"-50.0 +-100.0 +100.0 +1,234 +6,234 +no difference shown +100.0\n", text)


def test_a_harmed_benchmark_is_counted_beside_what_chance_would_call_harmed(
    reporter: Reporter, capsys: pytest.CaptureFixture[str]
) -> None:
    fine = replace(ROW, benchmark="b", verdict="better", low=0.1, high=0.2)
    show_paired(reporter, [[ROW, *[fine] * 7]])
    said = " ".join(capsys.readouterr().out.split())
    assert "harmed: 1 of 8 benchmarks (olympiad-bench-physics-en); by chance alone about 0.2 would be" in said


def test_one_evaluation_shows_every_k_but_the_first(reporter: Reporter, capsys: pytest.CaptureFixture[str]) -> None:
    at = (replace(AT, k=1), replace(AT, k=2), replace(AT, k=4, maj_at_k=None, maj_low=None, maj_high=None))
    show_evaluations(reporter, [replace(ONE, model="m", at_k=at)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["eval:", "pass@2", "pass@4"]
    assert "maj@2 98.5%" in lines[1] and "maj" not in lines[2]
