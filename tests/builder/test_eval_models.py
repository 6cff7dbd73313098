"""Models in folders: told apart by their weights, served only where something is missing."""

import shutil
from pathlib import Path

import pytest
from endpoint import endpoint

from builder.config import Recipe
from builder.errors import ServeError
from builder.evaluate import Benchmark, Prepared, Sampling, evaluate, named_model, prepare, served
from builder.section import PromptSource
from builder.store import Run


def test_folders_called_alike_are_two_models_and_a_moved_folder_is_the_same(tmp_path: Path, student: Path) -> None:
    recipe = Recipe(name="toy")
    folders = [tmp_path / name / "final" for name in ("a", "b", "c")]
    for folder in folders:
        shutil.copytree(student, folder)
    config = folders[1] / "config.json"
    config.write_text(config.read_text("utf-8") + "\n", encoding="utf-8")
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"prompt": "One?", "gold": "4", "gold_type": "number"}\n', encoding="utf-8")
    benchmark = Benchmark("q", [PromptSource(source=str(questions))])
    models = [named_model(recipe, str(folder)) for folder in folders]
    runs = [prepare(Run(tmp_path / "run"), recipe, one, benchmark, Sampling()).run.root for one in models]
    assert [one.name for one in models] == ["final"] * 3
    assert runs[0] == runs[2] != runs[1]


def test_a_model_is_served_only_where_replies_are_missing(
    tmp_path: Path, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, **options: object) -> None:
        raise ServeError(f"asked to serve {folder.name}")

    monkeypatch.setattr("builder.local_server.running_server", refuse)
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"prompt": "One?", "gold": "4", "gold_type": "number"}\n', encoding="utf-8")
    benchmark = Benchmark("q", [PromptSource(source=str(questions))])
    recipe = Recipe.model_validate({"name": "toy", "generation": {"max_tokens": 64}})
    model = named_model(recipe, str(student))

    def prepared() -> Prepared:
        return prepare(Run(tmp_path / "run"), recipe, model, benchmark, Sampling())

    with pytest.raises(ServeError, match=f"asked to serve {student.name}"), served([prepared()], None):
        pass
    with endpoint(model=student.name) as server, served([prepared()], server.url) as url:
        evaluate(prepared(), endpoint=url)
    assert prepared().missing == 0
    with served([prepared()], None) as url:
        assert evaluate(prepared(), endpoint=url).replies == 1
