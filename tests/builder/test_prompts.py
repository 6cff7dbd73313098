import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from score_toys import reply

from builder.config import Recipe
from builder.errors import SourceError
from builder.prompts import Prompts, load_prompts, write_prompts
from builder.store import Run, columns_table

QUESTIONS = [
    {"prompt": "What is 1 + 1?", "gold": "2", "gold_type": "number", "domain": "math", "licence": "MIT"},
    {"prompt": "Name a colour.", "gold": None},
]


def write(path: Path, *lines: Any) -> Path:
    path.write_bytes(
        b"".join((json.dumps(line) if isinstance(line, dict) else line).encode() + b"\n" for line in lines)
    )
    return path


def load(*sources: dict[str, Any] | Path, limit: int | None = None) -> Prompts:
    given = [source if isinstance(source, dict) else {"source": str(source)} for source in sources]
    return load_prompts(Recipe.model_validate({"name": "toy", "prompts": given}), limit=limit)


def refused(*sources: dict[str, Any] | Path) -> str:
    with pytest.raises(SourceError) as caught:
        load(*sources)
    return str(caught.value)


def test_a_row_keeps_question_gold_verifier_and_source(tmp_path: Path) -> None:
    first, second = load(write(tmp_path / "q.jsonl", *QUESTIONS)).rows
    assert first["messages"] == [{"role": "user", "content": "What is 1 + 1?"}]
    assert (first["gold"], first["gold_type"], first["verifier"], first["domain"]) == ("2", "number", "math", "math")
    assert [(s["source"], len(s["revision"]), s["license"]) for s in first["sources"]] == [("q.jsonl", 64, "MIT")]
    assert (second["gold"], second["verifier"], second["gold_conflicts"]) == (None, None, 0)


def test_a_source_decides_over_its_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", QUESTIONS[0])
    (row,) = load({"source": str(path), "gold_type": "latex", "domain": "algebra", "license": "CC0-1.0"}).rows
    assert (row["gold_type"], row["domain"], row["sources"][0]["license"]) == ("latex", "algebra", "CC0-1.0")


def test_gzip_parquet_and_plain_lines_give_the_same_prompts(tmp_path: Path) -> None:
    plain = write(tmp_path / "q.jsonl", *QUESTIONS)
    (tmp_path / "q.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    pl.DataFrame(QUESTIONS).write_parquet(tmp_path / "q.parquet")
    ids = [[row["prompt_id"] for row in load(tmp_path / f"q.{end}").rows] for end in ("jsonl", "jsonl.gz", "parquet")]
    assert ids[0] == ids[1] == ids[2]


def test_lines_end_at_newlines_only_and_a_byte_order_mark_is_no_question(tmp_path: Path) -> None:
    text = "one\u2028two\u0085three\u2029four"
    path = tmp_path / "q.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"prompt": text}, ensure_ascii=False).encode() + b"\r\n\n")
    assert [row["messages"][0]["content"] for row in load(path).rows] == [text]


def test_duplicates_merge_and_are_counted(tmp_path: Path) -> None:
    a = write(
        tmp_path / "a.jsonl", {"prompt": "caf\u00e9?"}, {"prompt": " cafe\u0301? \n", "gold": "yes", "domain": "food"}
    )
    b = write(tmp_path / "b.jsonl", {"prompt": "café?", "gold": "yes"}, {"prompt": "other?"})
    prompts = load(a, b)
    assert (len(prompts.rows), prompts.source_rows, prompts.duplicates, prompts.gold_conflicts) == (2, 4, 2, 0)
    assert (prompts.rows[0]["gold"], prompts.rows[0]["domain"]) == ("yes", "food")
    assert [source["source"] for source in prompts.rows[0]["sources"]] == ["a.jsonl", "b.jsonl"]


def test_conflicting_golds_become_none_and_are_counted(tmp_path: Path) -> None:
    lines = [{"prompt": "q?", "gold": gold} for gold in ("1", None, "2", "1", "3")]
    prompts = load(write(tmp_path / "q.jsonl", *lines, {"prompt": "r?", "gold": "1"}))
    assert [(row["gold"], row["gold_conflicts"]) for row in prompts.rows] == [(None, 2), ("1", 0)]
    assert prompts.gold_conflicts == 1


def test_a_gold_is_cut_out_by_its_pattern(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", {"question": "q?", "answer": "2 and 2\n#### 1,004 \nbye"})
    source = {"source": str(path), "prompt": "question", "gold": {"column": "answer", "pattern": "#### (.+)$"}}
    assert load(source).rows[0]["gold"] == "1,004"


HUMANEVAL = {"column": "test", "entry_point": "entry_point"}


def test_a_gold_of_tests_ends_with_the_call_of_its_entry_point(tmp_path: Path) -> None:
    row = {"prompt": "q?", "test": "def check(candidate):\n    assert candidate(1) == 2", "entry_point": "next_number"}
    source = {"source": str(write(tmp_path / "q.jsonl", row)), "gold": HUMANEVAL}
    assert load(source).rows[0]["gold"] == row["test"] + "\n\ncheck(next_number)\n"


@pytest.mark.parametrize("name", [None, "", "f(x)"])
def test_an_entry_point_that_names_no_function_is_an_error(tmp_path: Path, name: str | None) -> None:
    row = {"prompt": "q?", "test": "def check(candidate): ...", "entry_point": name}
    message = refused({"source": str(write(tmp_path / "q.jsonl", row)), "gold": HUMANEVAL})
    assert "row 1: column 'entry_point' holds" in message and "the tests in 'test' would check nothing" in message


def test_a_gold_that_is_a_list_or_an_object_is_kept_as_json(tmp_path: Path) -> None:
    golds = (["assert f(1) == 'ä'"], {"inputs": ["1\n"], "outputs": ["2\n"]})
    lines = [{"prompt": f"{number}?", "gold": gold} for number, gold in enumerate(golds)]
    assert [json.loads(row["gold"]) for row in load(write(tmp_path / "q.jsonl", *lines)).rows] == list(golds)


def test_messages_keep_their_roles(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": "q?", "extra": 1}]
    (row,) = load(write(tmp_path / "q.jsonl", {"messages": messages})).rows
    assert row["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q?"}]


def test_limit_counts_prompts_and_opens_no_source_that_it_does_not_need(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", {"prompt": "a?"}, {"prompt": "a?"}, {"prompt": "b?"}, {"prompt": "c?"})
    hub = {"source": "hf://datasets/org/name", "revision": "0" * 40}
    prompts = load(path, hub, limit=2)
    assert [row["messages"][0]["content"] for row in prompts.rows] == ["a?", "b?"]
    assert (prompts.source_rows, prompts.duplicates) == (3, 1)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{"prompt": "a?"}, {"prompt": " \n"}], "row 2 has an empty question"),
        ([{"prompt": "a?"}, "{'prompt': 1}"], "line 2 is no JSON"),
        (["[1]"], "line 1 is no JSON object but list"),
        ([b"\xff{}".decode("latin-1")], "line 1 is no JSON"),
        ([{"question": "a?", "id": 1}], "it has id, question. Name the column"),
        ([{"prompt": 7}], "holds int, neither text nor messages"),
        ([{"messages": []}], "holds list, neither text nor messages"),
        ([{"messages": [{"role": "human", "content": "a?"}]}], "is no message with a role of"),
        ([{"messages": [{"role": "user", "content": [{"type": "text"}]}]}], "is no message with a role of"),
        ([{"messages": [{"role": "system", "content": "a"}]}], "empty question"),
        (
            [{"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]}],
            "row 1 ends with the assistant's own reply",
        ),
        ([], "holds no rows"),
    ],
)
def test_what_cannot_be_asked_is_named_with_its_place(tmp_path: Path, lines: list[Any], said: str) -> None:
    message = refused(write(tmp_path / "q.jsonl", *lines))
    assert said in message
    assert "q.jsonl" in message


def test_a_gold_that_is_not_there_is_an_error_not_a_null(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", {"prompt": "a?", "answer": "#### 1"}, {"prompt": "b?", "answer": "none"})
    source = {"source": str(path), "gold": {"column": "answer", "pattern": "#### (.+)$"}}
    assert "row 2: pattern '#### (.+)$' is not in column 'answer' ('none')" in refused(source)
    assert "no column 'solution' for the gold" in refused({"source": str(path), "gold": "solution"})


def test_declared_rows_must_be_there(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", *QUESTIONS)
    assert "has 2 rows, but the recipe declares 3" in refused({"source": str(path), "rows": 3})
    assert len(load({"source": str(path), "rows": 2}).rows) == 2


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(json.dumps(QUESTIONS[0]).encode() * 100)[:60])
    (tmp_path / "no.jsonl.gz").write_bytes(b"{}")
    (tmp_path / "broken.jsonl.gz").write_bytes(gzip.compress(b"{}")[:10] + b"\xff" * 20)
    (tmp_path / "no.parquet").write_bytes(b"PAR1")
    (tmp_path / "table.csv").write_text("prompt\na\n")
    said = {"cut.jsonl.gz": "cannot be read", "no.jsonl.gz": "cannot be read", "broken.jsonl.gz": "cannot be read"}
    said |= {"no.parquet": "as Parquet", "table.csv": "convert it", "nowhere.jsonl": "does not exist"}
    for name, expected in said.items():
        message = refused(tmp_path / name)
        assert expected in message
        assert name in message


def test_a_hub_source_without_a_commit_is_refused_before_anything_is_downloaded() -> None:
    assert "not pinned" in refused({"source": "hf://datasets/org/name"})


def test_a_limited_run_keeps_the_other_prompts_of_the_table(tmp_path: Path) -> None:
    path, run = write(tmp_path / "q.jsonl", {"prompt": "a?"}, {"prompt": "b?"}, {"prompt": "c?"}), Run(tmp_path / "run")
    write_prompts(run, load(path))
    write_prompts(run, load(path, limit=1), limited=True)
    assert run.rows("prompts") == 3
    write_prompts(run, load(path, limit=1))
    assert run.rows("prompts") == 1


def test_a_file_in_place_of_the_recipes_source_may_use_standard_columns_and_that_is_said(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text('{"prompt": "1+1?", "gold": "2"}\n', encoding="utf-8")
    source = {"source": str(file), "prompt": "question", "gold": {"column": "answer", "pattern": "#### (.+)$"}}
    found = load_prompts(Recipe.model_validate({"name": "r", "prompts": [source]}))
    assert [(row["messages"][0]["content"], row["gold"]) for row in found.rows] == [("1+1?", "2")]
    assert "no column 'question'" in found.notes[0]


def test_prompts_of_imported_replies_stay_when_a_recipe_brings_others(tmp_path: Path) -> None:
    run = Run(tmp_path)
    rows = [
        {"prompt_id": name, "sources": [], "gold_conflicts": 0, "messages": [{"role": "user", "content": name}]}
        for name in ("old", "imported", "new")
    ]
    write_prompts(run, Prompts(rows[:2], 2, 0, 0))
    imported = reply("r") | {"prompt_id": "imported", "received_at": None}
    asked = reply("s") | {"prompt_id": "old", "received_at": datetime.now(UTC)}
    run.append("responses", columns_table("responses", [imported, asked]))
    write_prompts(run, Prompts(rows[2:], 1, 0, 0))
    assert set(run.read("prompts")["prompt_id"]) == {"imported", "new"}
    write_prompts(run, Prompts([], 0, 0, 0))
    assert set(run.read("prompts")["prompt_id"]) == {"imported"}
