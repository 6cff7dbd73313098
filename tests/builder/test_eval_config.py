"""Section `evaluation`: what is refused, and what the message says."""

from pathlib import Path

import pytest

from builder.errors import UsageError
from builder.recipe import load_recipe


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{sample: 4}", "did you mean samples?"),
        ("{samples: 0}", "evaluation.samples"),
        ("{temperature: .inf}", "evaluation.temperature"),
        ("{temperature: -1}", "evaluation.temperature"),
        ("{benchmarks: {a: {source: 'hf://datasets/org/aime'}}}", "has no `revision`"),
        ("{benchmarks: {a: {source: 'hf://datasets/org/aime', revision: main}}}", "not a full commit id"),
        ("{benchmarks: {'../a': {source: a.jsonl}}}", "must be letters, digits"),
        ("{benchmarks: {a: {source: a.jsonl, golds: answer}}}", "did you mean gold?"),
    ],
)
def test_a_benchmark_that_cannot_be_measured_is_refused_with_the_reason(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"name: toy\nevaluation: {text}\n", encoding="utf-8")
    with pytest.raises(UsageError) as error:
        load_recipe(path)
    assert said in str(error.value).replace("'", "")


def test_questions_of_the_hub_are_those_of_its_test_split_unless_the_recipe_says_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: toy\nevaluation:\n  benchmarks:\n"
        f"    a: {{source: 'hf://datasets/org/a', revision: {'a' * 40}}}\n"
        f"    b: {{source: 'hf://datasets/org/b', revision: {'a' * 40}, split: validation}}\n",
        encoding="utf-8",
    )
    section = load_recipe(path).evaluation
    assert section is not None
    assert {name: one.split for name, one in section.benchmarks.items()} == {"a": "test", "b": "validation"}
