"""The card of a release: legal metadata, whole tables, every number from the manifest."""

import copy
import re
from typing import Any

import pytest
import yaml
from huggingface_hub import DatasetCard
from jinja2.exceptions import SecurityError, UndefinedError

from builder import card
from builder.card import render_card
from builder.schema import RELEASE_CANDIDATES, RELEASE_GRPO, RELEASE_SFT

SHA = "a" * 64


def manifest(**changes: Any) -> dict[str, Any]:
    """Every number in it is its own, so that one found on the card is known by its source."""
    stages = [("low-temperature", "sft", 1301, 123_457), ("rl", "grpo", 1202, None)]
    data = [
        ("low-temperature", 0, 1301, 70_001),
        ("rl", 0, 700, 80_002),
        ("rl", 1, 502, 80_003),
        ("candidates", 0, 9_104, 990_005),
    ]
    return {
        "format": 1, "version": "v3", "build_id": "b" * 64, "created": "2026-11-22T00:00:00+00:00", "parent": "v2",
        "recipe_name": "toy", "recipe_hash": SHA, "seed": 17, "license": "mit", "repo": "org/toy",
        "sql": {"sql/rules/answer_wrong.sql": SHA, "sql/selectors/longest.sql": SHA},
        "prompts": [
            {"source": "hf://datasets/org/q", "revision": "1" * 40, "license": "cc-by-4.0", "rows": 2_206},
            {"source": "a|b.jsonl", "revision": None, "license": None, "rows": 3_307},
        ],
        "teacher": {"model": "org/teacher", "revision": "7" * 40, "tokenizer": "org/teacher"},
        "student": {"model": "org/student", "revision": "5" * 40, "system_prompt": "Be\nbrief | exact."},
        "sampling": {
            "temperatures": [0.65, 1.05], "samples": 6, "top_p": 0.95, "max_tokens": 32_768, "seed": 17,
            "system_prompt": None, "reasoning_effort": "high", "extra_body": {}, "logprobs": True,
        },
        "selection": {
            "selection_id": "s", "order": "rules-first", "rules": ["answer_wrong"], "selector": "longest",
            "params": {"teacher_margin": 0.15}, "keep": 2,
        },
        "funnel": [{"rule": "answer_wrong", "breaks": 4_408, "breaks_alone": 3_309, "tokens": 55_510}],
        "rollout": None,
        "mixed_policy": None,
        "files": [
            {"path": f"data/{name}/train-{i:05d}-of-00002.parquet", "sha256": SHA, "bytes": size, "rows": rows}
            for name, i, rows, size in data
        ] + [{"path": ".builder/recipe.yaml", "sha256": SHA, "bytes": 1, "rows": None}],
        "schedule": [
            {"stage": n, "config": n, "kind": k, "init": "previous", "rows": r, "tokens": tokens, "rowset_hash": SHA,
             "epochs": None}
            for n, k, r, tokens in stages
        ],
        "score_remarks": {},
        "calls": {
            "attempts": 9_999, "maybe_billed": 3, "replies": 9_511, "prompt_tokens": 66_612,
            "completion_tokens": 77_713, "cost_usd": 12.345,
        },
        "packages": {"tempered": "0.1.0"},
        **changes,
    }  # fmt: skip


def tables(text: str) -> list[list[list[str]]]:
    """Markdown tables as cells; asserts that header, separator and rows are on lines of their own and equally wide."""
    found = []
    lines = [*text.split("\n"), ""]
    block: list[str] = []
    for number, line in enumerate(lines):
        if line.startswith("|"):
            if not block:
                assert lines[number - 1] == "", f"a table needs an empty line before it: {line}"
            block.append(line)
            continue
        assert " | --" not in line
        assert "|--" not in line
        if block:
            cells = [re.split(r"(?<!\\)\|", row)[1:-1] for row in block]
            assert all(row.endswith("|") for row in block)
            assert len(block) > 2, "a table without rows"
            assert {len(row) for row in cells} == {len(cells[0])}
            assert all(re.fullmatch(r"-+:?", cell) for cell in cells[1])
            found.append([[cell.strip() for cell in row] for row in [cells[0], *cells[2:]]])
            block = []
    return found


def test_front_matter_is_legal() -> None:
    text = render_card(manifest())
    parsed = DatasetCard(text)
    assert parsed.data.to_dict() == yaml.safe_load(text.split("---\n")[1])
    assert parsed.data.license == "mit"
    assert parsed.data.size_categories == ["1K<n<10K"]
    assert parsed.data.tags == ["synthetic", "distillation", "reasoning-traces"]
    configs = parsed.data.to_dict()["configs"]
    assert [config["config_name"] for config in configs] == ["low-temperature", "rl", "candidates"]
    assert [config.get("default") for config in configs] == [True, None, None]
    assert configs[1]["data_files"] == [{"split": "train", "path": "data/rl/train-*.parquet"}]


@pytest.mark.parametrize(
    ("rows", "bucket"),
    [(999, "n<1K"), (1_000, "1K<n<10K"), (99_999, "10K<n<100K"), (10**6, "1M<n<10M"), (2 * 10**8, "100M<n<1B")],
)
def test_size_is_a_bucket_of_the_hub(rows: int, bucket: str) -> None:
    one = manifest()["schedule"][:1]
    text = render_card(manifest(schedule=[one[0] | {"rows": rows}]))
    assert DatasetCard(text).data.size_categories == [bucket]


def test_a_licence_is_written_as_the_hub_knows_it_or_unknown() -> None:
    assert DatasetCard(render_card(manifest(license="CC-BY-4.0"))).data.license == "cc-by-4.0"
    text = render_card(manifest(license=None))
    assert DatasetCard(text).data.license == "unknown"
    assert "Licence of this dataset: not stated." in text


def test_tables_are_whole_and_their_numbers_those_of_the_manifest() -> None:
    schedule, configs, sources, funnel, grpo, sft, candidates = tables(render_card(manifest()))
    assert schedule[1:] == [
        ["`low-temperature`", "sft", "previous", "1,301", "123,457"],
        ["`rl`", "grpo", "previous", "1,202", "not counted"],
    ]
    assert configs[1:] == [
        ["`low-temperature` (default)", "1,301", "70,001"],
        ["`rl`", "1,202", "160,005"],
        ["`candidates`", "9,104", "990,005"],
    ]
    assert sources[1:] == [
        ["hf://datasets/org/q", "1" * 40, "cc-by-4.0", "2,206"],
        ["a\\|b.jsonl", "none", "not stated", "3,307"],
    ]
    assert funnel[1:] == [["[`answer_wrong`](.builder/sql/rules/answer_wrong.sql)", "4,408", "3,309", "55,510"]]
    for table, schema in ((grpo, RELEASE_GRPO), (sft, RELEASE_SFT), (candidates, RELEASE_CANDIDATES)):
        assert [row[0].strip("`") for row in table[1:]] == schema.names
        assert all(row[1].startswith("`") and row[2] for row in table[1:]), "a type in <> outside backticks is lost"


def test_what_a_stranger_needs_is_on_the_card() -> None:
    text = render_card(manifest())
    for said in (
        'load_dataset("org/toy", "low-temperature", split="train", revision="v3")',
        "trainer run --dataset org/toy@v3 --model org/student --output OUT",
        "Temperatures 0.65, 1.05; 6 samples a prompt and temperature; top_p 0.95; at most 32,768 tokens; seed 17.",
        "Reasoning effort: high.",
        'its system prompt "Be brief \\| exact." is the first message of every `prompt`',
        "9,511 replies, 77,713 completion tokens, 12.35 USD",
        "At most 2 kept for each prompt and temperature; parameters `teacher_margin = 0.15`.",
        "[`longest`](.builder/sql/selectors/longest.sql) ranks what is left",
        f"`build_id` `{'b' * 16}…`",
    ):
        assert said in text, said


def test_every_number_in_the_text_comes_from_the_manifest() -> None:
    """Change all numbers: none of the old ones is left (but those of the method and of column descriptions)."""

    def shifted(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: inner if key == "format" else shifted(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [shifted(inner) for inner in value]
        return value + 1_000 if isinstance(value, int | float) and not isinstance(value, bool) else value

    numbers = re.compile(r"\d[\d,]*(?:\.\d+)?")
    before, after = (render_card(m).split("## Columns")[0] for m in (manifest(), shifted(copy.deepcopy(manifest()))))
    common = [a for a, b in zip(numbers.findall(before), numbers.findall(after), strict=True) if a == b]
    assert set(common) <= {"1", "3", "10", "1" * 40, "5" * 40, "7" * 40, "4.0"}
    assert len(set(numbers.findall(before))) > 20


@pytest.mark.parametrize(
    "changes",
    [
        {"student": None},
        {"repo": None, "license": None},
        {"funnel": []},
        {"calls": manifest()["calls"] | {"cost_usd": None}},
        {"selection": manifest()["selection"] | {"order": "selector-first", "params": {}}},
        {"teacher": {"model": "t", "revision": None, "tokenizer": None}},
        {"schedule": manifest()["schedule"][:1]},
    ],
    ids="-".join,
)
def test_a_sparse_manifest_still_makes_a_whole_card(changes: dict[str, Any]) -> None:
    text = render_card(manifest(**changes))
    assert tables(text)
    assert "None" not in text
    assert "\n\n\n" not in text
    DatasetCard(text)


def test_the_card_names_no_registry_and_no_address() -> None:
    assert "://" not in render_card(manifest()).replace("hf://datasets/", "")


def test_a_template_cannot_reach_into_the_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for text, error in (("{{ manifest.__class__.__mro__ }}", SecurityError), ("{{ manifest.typo }}", UndefinedError)):
        path = tmp_path / "card.md.jinja"
        path.write_text(text)
        monkeypatch.setattr(card, "resource", lambda *_, path=path: path)
        with pytest.raises(error):
            render_card(manifest())


def test_scores_with_a_remark_are_owned_up_to() -> None:
    remark = "student: its weights are quantised (gptq)"
    assert "have a remark" not in render_card(manifest())
    assert f"Of the scores, 1,200 have a remark: {remark}." in render_card(manifest(score_remarks={remark: 1200}))
