"""Exports of a release: what each tool's documentation asks for, what our own import reads back, what is refused."""

import json
from pathlib import Path
from typing import Any

import datasets
import jsonschema
import pytest
import yaml
from format_toys import CONVERSATION, HOSTILE, SYSTEM, grpo, imported, one_turn, pair, read, released, sft, turn
from release_toys import Selected, recipe

from builder import format_files, formats
from builder.console import Reporter
from builder.errors import ReleaseError, UsageError
from builder.format_command import check_format, export_given
from builder.formats import KINDS, export
from builder.identity import normalize_messages
from builder.release import release
from builder.selection import select
from builder.text import completion_text

TEXT = {"type": "string"}


def columns(**types: Any) -> dict[str, Any]:
    return {"type": "object", "properties": types, "required": list(types), "additionalProperties": False}


def said(role: str, content: str, *roles: str) -> dict[str, Any]:
    return columns(**{role: {"enum": list(roles)}, content: TEXT})


MESSAGES = {"type": "array", "minItems": 1, "items": said("role", "content", "system", "user", "assistant")}
TURNS = {"type": "array", "minItems": 1, "items": said("from", "value", "human", "gpt")}
HISTORY = {"type": "array", "items": {"type": "array", "minItems": 2, "maxItems": 2, "items": TEXT}}
ALPACA = {"instruction": TEXT, "input": {"const": ""}, "system": TEXT, "history": HISTORY}
GPT = said("from", "value", "gpt")
# As documented: data/README.md of LLaMA-Factory, TRL's dataset formats, the card of DASD's set (all of it strings).
DOCUMENTED = {
    ("dasd", "sft"): columns(uuid=TEXT, input=TEXT, output=TEXT, domain=TEXT, meta=TEXT),
    ("messages", "sft"): columns(
        messages=MESSAGES, response_id=TEXT, prompt_id=TEXT, domain=TEXT, model=TEXT, temperature={"type": "number"},
        license=TEXT,
    ),
    ("messages", "grpo"): columns(
        prompt=MESSAGES, solution=TEXT, gold_type=TEXT, verifier=TEXT, language=TEXT, domain=TEXT, prompt_id=TEXT
    ),
    ("messages", "reward"): columns(prompt=MESSAGES, chosen=MESSAGES, rejected=MESSAGES),
    ("alpaca", "sft"): columns(**ALPACA, output=TEXT, domain=TEXT, response_id=TEXT),
    ("alpaca", "reward"): columns(**ALPACA, chosen=TEXT, rejected=TEXT),
    ("sharegpt", "sft"): columns(conversations=TURNS, system=TEXT, domain=TEXT, response_id=TEXT),
    ("sharegpt", "reward"): columns(conversations=TURNS, system=TEXT, chosen=GPT, rejected=GPT),
}  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), DOCUMENTED)
def test_rows_have_the_documented_columns_and_types(tmp_path: Path, name: str, kind: str) -> None:
    asked = [SYSTEM, turn("user", "What is 1 + 2?")]
    made = {"sft": one_turn(), "grpo": [grpo("p", 0, asked)], "reward": [pair(0, asked)]}[kind]
    found = export(released(tmp_path, {"only": (kind, made)}), name, tmp_path / "out")
    (file,) = found.rows
    rows = read(found.path / file)
    assert len(rows) == found.rows[file] == len(made)
    for row in rows:
        jsonschema.validate(row, DOCUMENTED[name, kind])


@pytest.mark.parametrize("name", ["dasd", "messages", "sharegpt", "alpaca"])
def test_text_order_and_ids_come_through_whatever_the_text_holds(tmp_path: Path, name: str) -> None:
    found = export(released(tmp_path, {"only": ("sft", one_turn())}), name, tmp_path / "out")
    (file,) = found.rows
    rows = read(found.path / file)
    ids = [row["uuid" if name == "dasd" else "response_id"] for row in rows]
    texts = [row["output"] if "output" in row else next(iter(row.values()))[-1] for row in rows]
    texts = [text if isinstance(text, str) else text.get("content", text.get("value")) for text in texts]
    assert ids == ["r3", "r2", "r1", "r0"]  # by position, not by id
    assert texts == [completion_text(*HOSTILE[place]) for place in (3, 2, 1, 0)]


@pytest.mark.parametrize("name", ["dasd", "messages"])
def test_no_reader_of_lines_cuts_a_json_line(tmp_path: Path, name: str) -> None:
    found = export(released(tmp_path, {"only": ("sft", one_turn())}), name, tmp_path / "out")
    (file,) = found.rows
    text = (found.path / file).read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == read(found.path / file)  # splitlines cuts at U+2028


@pytest.mark.parametrize(("name", "reader"), [("dasd", "dasd"), ("messages", "messages"), ("sharegpt", "openthoughts")])
def test_import_reads_back_prompts_reasoning_and_answers(tmp_path: Path, name: str, reader: str) -> None:
    texts = [HOSTILE[0], HOSTILE[2], HOSTILE[3], (None, "Three.")]
    made = one_turn(texts)
    found = export(released(tmp_path, {"only": ("sft", made)}), name, tmp_path / "out")
    (file,) = found.rows
    back = imported(found.path / file, reader)[::-1]
    asked = [row["prompt"][1:] if name == "dasd" else row["prompt"] for row in made]  # no column: in the README
    assert [given.messages for given in back] == [normalize_messages(prompt) for prompt in asked]
    assert [(given.reasoning, given.answer) for given in back] == [
        (one and one.strip(), two.strip()) for one, two in texts
    ]
    assert {given.prompt["domain"] for given in back} == {"math"}
    if name == "dasd":
        assert [given.uuid for given in back] == ["r0", "r1", "r2", "r3"]
    if name == "messages":
        facts = back[0].facts
        assert (facts["model"], facts["temperature"], back[0].prompt["license"]) == ("org/teacher", 0.6, "cc-by-4.0")


def test_stages_are_stage1_stage2_in_training_order_and_datasets_loads_them(tmp_path: Path) -> None:
    low, high = one_turn(), [sft("h", 0, [turn("user", "Why?")], "<think>\nx\n</think>\n\ny", domain=None)]
    folder = released(tmp_path, {"low": ("sft", low), "high": ("sft", high)})
    found = export(folder, "dasd", tmp_path / "out")
    assert found.rows == {"stage1-train-data.jsonl": 4, "stage2-train-data.jsonl": 1}
    front = yaml.safe_load((found.path / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert front["license"] == "mit"
    for config, ids in (("stage1", ["r3", "r2", "r1", "r0"]), ("stage2", ["h"])):
        rows = datasets.load_dataset(str(found.path), config, split="train", cache_dir=str(tmp_path / "cache"))
        assert rows["uuid"] == ids
        assert {feature.dtype for feature in rows.features.values()} == {"string"}
    meta = json.loads(read(found.path / "stage1-train-data.jsonl")[0]["meta"])
    assert (meta["temperature"], meta["teacher"], meta["mean_delta"], meta["position"]) == (0.6, "org/teacher", None, 0)
    alone = export(folder, "dasd", tmp_path / "alone", stages=["high"])
    assert list(alone.rows) == ["stage2-train-data.jsonl"]  # its place in training


def test_the_students_system_prompt_is_left_to_dasds_training_and_said(tmp_path: Path) -> None:
    found = export(released(tmp_path, {"only": ("sft", one_turn())}), "dasd", tmp_path / "out")
    text = (found.path / "README.md").read_text(encoding="utf-8")
    assert 'Train with the system prompt "You are a helpful assistant."' in text
    assert any(note.startswith("4 rows were released with the system prompt of the student") for note in found.notes)
    assert all(note in text for note in found.notes)


@pytest.mark.parametrize(
    ("name", "prompt", "roles"),
    [
        ("dasd", CONVERSATION, "system, user, assistant, user"),
        ("dasd", [turn("system", "Be brief."), turn("user", "a")], "system, user"),
        ("alpaca", [turn("user", "a"), turn("user", "b")], "user, user"),
        ("sharegpt", [turn("user", "a"), turn("tool", "b"), turn("user", "c")], "user, tool, user"),
        ("sharegpt", [turn("user", "a"), turn("assistant", "b")], "user, assistant"),
    ],
)
def test_a_prompt_that_the_format_cannot_express_is_refused_by_name(
    tmp_path: Path, name: str, prompt: list[dict[str, str]], roles: str
) -> None:
    odd = [sft(f"odd{place}", 10 + place, prompt, "3") for place in range(7)]
    folder = released(tmp_path, {"fine": ("sft", one_turn()), "chat": ("sft", odd)})
    with pytest.raises(ReleaseError, match=rf"7 rows of stage chat hold .*: odd0 \({roles}\); odd1.*; and 2 more"):
        export(folder, name, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["v3"]  # nothing half-written
    assert export(folder, name, tmp_path / "out", stages=["fine"]).rows
    assert sum(export(folder, "messages", tmp_path / "all").rows.values()) == 11


def test_conversations_become_history_and_turns(tmp_path: Path) -> None:
    folder = released(tmp_path, {"only": ("sft", [sft("r", 0, CONVERSATION, "d"), *one_turn()[:1]])})
    found = export(folder, "alpaca", tmp_path / "alpaca")
    chat, short = sorted(read(found.path / "only.parquet"), key=lambda row: len(row["instruction"]))
    assert (chat["history"], chat["instruction"], chat["output"]) == ([["a", "b"]], "c", "d")
    assert (chat["system"], short["history"]) == (SYSTEM["content"], [])
    assert any(note.startswith("1 rows have earlier replies") for note in found.notes)
    turns = read(export(folder, "sharegpt", tmp_path / "sharegpt").path / "only.parquet")[0]["conversations"]
    assert [(one["from"], one["value"]) for one in turns] == [
        ("human", "a"),
        ("gpt", "b"),
        ("human", "c"),
        ("gpt", "d"),
    ]


def test_mixed_rows_are_handed_on_whole_and_counted(tmp_path: Path) -> None:
    mixed = sft("m", 0, [SYSTEM, turn("user", "a")], "<think>\nMine. Theirs.\n</think>\n\n3", prefix_chars=13)
    folder = released(tmp_path, {"mixed": ("sft", [mixed])})
    for name in ("dasd", "messages", "alpaca", "sharegpt"):
        found = export(folder, name, tmp_path / name)
        assert any(note.startswith("1 rows begin with text that the student wrote") for note in found.notes)
        assert "has no mask for it" in (found.path / "README.md").read_text(encoding="utf-8")


def test_prompts_and_pairs_go_only_where_the_format_has_rows_for_them(tmp_path: Path) -> None:
    asked = [SYSTEM, turn("user", "a")]
    folder = released(tmp_path, {"rl": ("grpo", [grpo("p", 0, asked)]), "judge": ("reward", [pair(0, asked)])})
    (row,) = read(export(folder, "messages", tmp_path / "messages").path / "rl.jsonl")
    assert (row["prompt"], row["solution"], row["domain"]) == (asked, "3", "")
    with pytest.raises(UsageError, match=r"sft, reward, but rl is grpo\. Choose with --stage: judge"):
        export(folder, "sharegpt", tmp_path / "sharegpt")
    with pytest.raises(UsageError, match=r"but rl is grpo, judge is reward\. Take --format messages"):
        export(folder, "dasd", tmp_path / "dasd")
    found = export(folder, "sharegpt", tmp_path / "sharegpt", stages=["judge"])
    info = json.loads((found.path / "dataset_info.json").read_text(encoding="utf-8"))
    assert info == {
        "toy-v3-judge": {
            "file_name": "judge.parquet",
            "formatting": "sharegpt",
            "ranking": True,
            "columns": {"messages": "conversations", "system": "system", "chosen": "chosen", "rejected": "rejected"},
        }
    }


@pytest.mark.parametrize("name", ["alpaca", "sharegpt"])
def test_llama_factory_converts_every_row(tmp_path: Path, name: str) -> None:
    parser = pytest.importorskip("llamafactory.data.parser", reason="llamafactory is not installed")
    converter = pytest.importorskip("llamafactory.data.converter")
    rows = [*one_turn(), sft("chat", 9, CONVERSATION, "d")]
    folder = released(tmp_path, {"low": ("sft", rows), "judge": ("reward", [pair(0, CONVERSATION)])})
    found = export(folder, name, tmp_path / "out")
    low, judge = parser.get_dataset_list(["toy-v3-low", "toy-v3-judge"], str(found.path))
    converted = [
        converter.get_dataset_converter(low.formatting, low, None)(row) for row in read(found.path / "low.parquet")
    ]
    assert [row["_response"] for row in converted] == [
        row["completion"] for row in sorted(rows, key=lambda row: row["position"])
    ]
    assert [*converted[-1]["_prompt"]] == CONVERSATION[1:] and converted[-1]["_system"] == SYSTEM["content"]
    (judged,) = [
        converter.get_dataset_converter(judge.formatting, judge, None)(row)
        for row in read(found.path / "judge.parquet")
    ]
    assert [turn["content"] for turn in judged["_response"]] == [
        pair(0, [])[side][0]["content"] for side in ("chosen", "rejected")
    ]


# Releases, folders, disks.


def test_a_release_of_this_run_is_exported_beside_it(made: Selected, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = made
    path = release(run, recipe(), select(run, recipe())).path
    export_given(Reporter(), path, "messages", None)
    out = run.releases / "v1-messages"
    assert sorted(file.name for file in out.iterdir()) == [
        "README.md",
        "high-temperature.jsonl",
        "low-temperature.jsonl",
    ]
    assert len(read(out / "low-temperature.jsonl")) == 3
    assert f"export: v1 as messages written to {out}" in capsys.readouterr().out.replace("\n", "")
    with pytest.raises(UsageError, match=r"v1-messages exists already.*--out"):
        export_given(Reporter(), path, "messages", None)


def test_formats_and_stages_that_do_not_exist_are_named(tmp_path: Path) -> None:
    folder = released(tmp_path, {"low": ("sft", one_turn())})
    with pytest.raises(UsageError, match="'chatml' is not known; it is one of dasd, messages"):
        export(folder, "chatml", tmp_path / "out")
    with pytest.raises(UsageError, match="has no stage high; it has low"):
        export(folder, "dasd", tmp_path / "out", stages=["high"])
    with pytest.raises(UsageError, match="--out and --stage belong to --format"):
        check_format(None, tmp_path, [])
    with pytest.raises(UsageError, match="is not known"):
        check_format("chatml", None, [])
    check_format(None, None, [])


def test_a_release_that_is_not_as_its_manifest_says_is_refused(tmp_path: Path) -> None:
    folder = released(tmp_path / "a", {"low": ("sft", one_turn())})
    next((folder / "data" / "low").iterdir()).write_bytes(b"altered")
    with pytest.raises(ReleaseError, match="was altered"):
        export(folder, "dasd", tmp_path / "out")
    fewer = released(tmp_path / "b", {"low": ("sft", one_turn())}, schedule=[
        {"stage": "low", "config": "low", "kind": "sft", "rows": 5}])  # fmt: skip
    with pytest.raises(ReleaseError, match="holds 4 rows, its manifest says 5"):
        export(fewer, "dasd", tmp_path / "out")
    foreign = released(tmp_path / "c", {"low": ("reward", [pair(0, [SYSTEM])])}, schedule=[
        {"stage": "low", "config": "low", "kind": "sft", "rows": 1}])  # fmt: skip
    with pytest.raises(ReleaseError, match="has nothing where a release has"):
        export(foreign, "dasd", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["dasd", "sharegpt"])
def test_rows_that_memory_does_not_hold_come_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    texts = [(f"Thought {place}.", f"Answer {place}.") for place in range(40)]
    folder = released(tmp_path, {"low": ("sft", one_turn(texts))})
    (file,) = export(folder, name, tmp_path / "at-once").rows
    monkeypatch.setattr(format_files, "_PILE_BYTES", 100)
    export(folder, name, tmp_path / "in-piles")
    rows = read(tmp_path / "in-piles" / file)
    assert rows == read(tmp_path / "at-once" / file) and len(rows) == 40
    assert sorted(path.name for path in (tmp_path / "in-piles").glob(".*")) == []


@pytest.mark.parametrize("broken", ["put", "put_text", "ordered_rows"])
def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    folder = released(tmp_path, {"low": ("sft", one_turn())})

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((format_files.Lines, broken) if broken == "put" else (formats, broken)), full)
    with pytest.raises(ReleaseError, match=r"No space left on device.*Nothing half-written is left"):
        export(folder, "messages", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["v3"]


def test_every_format_is_documented_in_this_file() -> None:
    assert set(KINDS) == {name for name, _ in DOCUMENTED} | {"axolotl-kd"}
