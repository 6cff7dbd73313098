"""The card of a release: legal metadata, whole tables, every number from the manifest."""

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from huggingface_hub import DatasetCard, metadata_load
from jinja2.exceptions import SecurityError, UndefinedError
from markdown_it import MarkdownIt
from pydantic import ValidationError

from builder import card
from builder.card import render_card
from builder.resources import resource
from builder.schema import LOGPROBS, RELEASE_CANDIDATES, RELEASE_GRPO, RELEASE_REWARD, RELEASE_SFT
from trainer.schedule import Stage

SHA = "a" * 64
EVIL = (
    "x | `y` </code><script>alert(1)</script> ![i](z) [l](z) {{ 7 * 7 }} {% raw %} $$m$$ \\| ```\n## Own\n| a |\n\u202e"
)


def spread(first: int | float) -> dict[str, Any]:
    step = 1 if isinstance(first, int) else 0.01
    names = ("p5", "p25", "p50", "p75", "p95", "max")
    return {"known": 1_111, "missing": 190, **{name: first + step * place for place, name in enumerate(names)}}


def statistics() -> dict[str, Any]:
    """Numbers of the toy manifest below, each its own."""
    sft = {
        "config": "low-temperature", "kind": "sft", "temperature": 0.65, "rows": 1301, "prompts": 1_207,
        "domains": [{"domain": "math", "rows": 1_011}, {"domain": None, "rows": 212}],
        "student_tokens": spread(14_100), "completion_tokens": spread(14_200), "teacher_sentences": spread(14_300),
        "sentence_count": spread(14_400), "mean_delta": spread(0.317),
    }  # fmt: skip
    lines = [
        ("low-temperature", None, (1_021, 31, 22, 13, 4)),
        ("low-temperature", "math", (1_022, 32, 23, 14, 5)),
        ("low-temperature", "judge", (1_023, 33, 24, 15, 6)),
        ("candidates", None, (8_021, 731, 122, 113, 104)),
        ("candidates", "math", (8_021, 731, 122, 113, 104)),
    ]
    names = ("correct", "wrong", "unscorable", "timeout", "error")
    return {
        "replies": {"candidates": 9_105, "released": 1_308},
        "configs": [sft],
        "verdicts": [
            {"config": config, "verifier": verifier, **dict(zip(names, numbers, strict=True)), "unverified": 210}
            for config, verifier, numbers in lines
        ],
        "pass_rate": {
            "prompts": 5_501, "none_correct": 502, "all_correct": 3_503, "edges": [0, 0.5, 1], "counts": [1, 2],
        },
        "decontamination": {
            "is_rule": False, "ngram_words": 11, "min_row_share": 0.25, "prompts_compared": 5_504, "prompts_hit": 17,
            "rows_hit": {"low-temperature": 18, "candidates": 119},
            "benchmarks": [
                {"name": "aime", "source": "aime.jsonl", "revision": SHA, "rows": 61, "prompts_hit": 16},
            ],
        },
        "duplicates": {
            "same_text": {"candidates": 1_505, "released": 1_406},
            "near": {"compared": 9_106, "alike": 1_607, "floor": 0.75},
        },
        "histograms": [],
    }  # fmt: skip


HISTORY = [
    {"version": "v2", "created": "2026-11-21T00:00:00+00:00", "rows": {"low-temperature": 1_299}, "changes": []},
    {
        "version": "v3",
        "created": "2026-11-22T00:00:00+00:00",
        "rows": {"low-temperature": 1_301, "rl": 1_202},
        "changes": [
            {"what": "config", "name": "low-temperature", "before": 1_299, "after": 1_301},
            {"what": "config", "name": "rl", "before": None, "after": 1_202},
            {"what": "rule", "name": "answer_wrong", "before": None, "after": "asked for"},
            {"what": "rule", "name": "refusal", "before": "asked for", "after": None},
            {"what": "parameter", "name": "teacher_margin", "before": 0.1, "after": 0.15},
            {"what": "SQL", "name": "sql/rules/tail_loop.sql", "before": "b" * 64, "after": SHA},
        ],
    },
]


MIXED = {
    "mixed_policy": {
        "stage": "low-temperature", "keep": "cap", "length_cap": 1.75, "cut": [0.35, 0.85], "temperature": 1.05,
        "off_policy_ratio": 2.6, "rollouts": 3_101, "hit_cap": 3_002, "cut_rollouts": 2_903, "continued": 2_804,
        "mixed_rows": 2_705, "off_policy_rows": 2_606,
    },
    "rollout": {"base": "org/student@5", "dataset": "c" * 64, "stage": "warm-up", "weights_sha256": "d" * 64},
}  # fmt: skip


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
        "statistics": statistics(),
        "history": HISTORY,
        "files": [
            {"path": f"data/{name}/train-{i:05d}-of-00002.parquet", "sha256": SHA, "bytes": size, "rows": rows}
            for name, i, rows, size in data
        ] + [
            {"path": path, "sha256": SHA, "bytes": 1, "rows": None}
            for path in (".builder/recipe.yaml", ".builder/plots/student-tokens.svg")
        ],
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


def without_numbers(**changes: Any) -> dict[str, Any]:
    """A manifest of before there were statistics and a history."""
    return {key: value for key, value in manifest(**changes).items() if key not in ("statistics", "history")}


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


def test_a_license_is_written_as_the_hub_knows_it_or_unknown() -> None:
    assert DatasetCard(render_card(manifest(license="CC-BY-4.0"))).data.license == "cc-by-4.0"
    text = render_card(manifest(license=None))
    assert DatasetCard(text).data.license == "unknown"
    assert "License of this dataset: not stated." in text


def test_tables_are_whole_and_their_numbers_those_of_the_manifest() -> None:
    found = tables(render_card(manifest()))
    schedule, configs, sources, funnel, verdicts, benchmarks, numbers, quantiles, grpo, sft, candidates = found
    assert schedule[1:] == [
        ["`low-temperature`", "`sft`", "`previous`", "1,301", "123,457", "the trainer's"],
        ["`rl`", "`grpo`", "`previous`", "1,202", "not counted", "the trainer's"],
    ]
    assert configs[1:] == [
        ["`low-temperature` (default)", "1,301", "70,001"],
        ["`rl`", "1,202", "160,005"],
        ["`candidates`", "9,104", "990,005"],
    ]
    assert sources[1:] == [
        ["`hf://datasets/org/q`", f"`{'1' * 40}`", "`cc-by-4.0`", "2,206"],
        ["<code>a&#124;b.jsonl</code>", "none", "not stated", "3,307"],
    ]
    assert funnel[1:] == [
        ["[`answer_wrong`](.builder/sql/rules/answer_wrong.sql)", f"`{SHA[:12]}`", "4,408", "3,309", "55,510"]
    ]
    assert [row[:3] for row in verdicts[1:]] == [
        ["`low-temperature`", "decides", "1,021"],
        ["`low-temperature`", "`math`", "1,022"],
        ["`low-temperature`", "`judge`", "1,023"],
        ["`candidates`", "`math`, decides", "8,021"],
    ]
    assert benchmarks[1:] == [["`aime`", "`aime.jsonl`", f"`{SHA}`", "61", "16"]]
    assert numbers[1:] == [["`low-temperature`", "0.65", "1,301", "1,207", "`math` 1,011, not stated 212, others 78"]]
    assert [row[2] for row in quantiles[1:]] == [
        f"`{name}`"
        for name in ("student_tokens", "completion_tokens", "teacher_sentences", "sentence_count", "mean_delta")
    ]
    assert quantiles[1][3:] == ["14,100", "14,101", "14,102", "14,103", "14,104", "14,105", "190"]
    assert quantiles[5][3:] == ["0.317", "0.327", "0.337", "0.347", "0.357", "0.367", "190"]
    for table, schema in ((grpo, RELEASE_GRPO), (sft, RELEASE_SFT), (candidates, RELEASE_CANDIDATES)):
        assert [row[0].strip("`") for row in table[1:]] == schema.names
        assert all(row[1].startswith("`") and row[2] for row in table[1:]), "a type in <> outside backticks is lost"


def test_what_a_stranger_needs_is_on_the_card() -> None:
    text = render_card(manifest())
    for said in (
        'load_dataset("org/toy", "low-temperature", split="train", revision="v3")',
        "trainer run --dataset org/toy@v3 --model org/student --output OUT",
        "Temperatures 0.65, 1.05; 6 samples a prompt and temperature; top_p 0.95; at most 32,768 tokens; seed 17.",
        "Reasoning effort: `high`.",
        "its system prompt <code>Be brief &#124; exact.</code> is the first message of every `prompt`",
        "9,511 replies, 77,713 completion tokens, 12.35 USD",
        "At most 2 kept for each prompt and temperature; parameters `teacher_margin` = `0.15`.",
        "[`longest`](.builder/sql/selectors/longest.sql) ranks what is left",
        "Of 9,105 candidates, 1,308 are in a stage.",
        f"`build_id` `{'b' * 64}`",
        "**v3**, 2026-11-22: `low-temperature` 1,301 rows, `rl` 1,202 rows.",
        "- config `low-temperature`: 1,299 → 1,301 rows\n- config `rl` is new: 1,202 rows",
        "- rule `answer_wrong` is new\n",
        "- rule `refusal` is gone\n- parameter `teacher_margin`: `0.1` → `0.15`",
        "- SQL `sql/rules/tail_loop.sql`: `bbbbbbbbbbbb…` → `aaaaaaaaaaaa…`",
        "**v2**, 2026-11-21: `low-temperature` 1,299 rows. The first version.",
        "\nbuilder diff org/toy@v2 org/toy@v3\n",
        "- Not checked: <code>a&#124;b.jsonl</code> states no license.",
        "- The terms of the teacher `org/teacher` apply to its replies. The recipe does not state them",
        "Of 5,501 prompts with a reply that is correct or wrong, the teacher never solved 502 and always solved 3,503.",
        "5,504 prompts were compared. A prompt is hit when it shares 11 words in a row with a row of a benchmark and "
        "they cover 0.25 of it, or is the same question. 17 were hit; no rule dropped them. Rows with such a prompt: "
        "`low-temperature` 18, `candidates` 119.",
        "1,505 candidates repeat the text of another one, case and white space aside; among the released replies 1,406",
        "Of 9,106 candidates that were compared, 1,607 are near copies of an earlier one (Jaccard similarity of word "
        "5-grams at least 0.75).",
        "![Histograms of student tokens by config and temperature](.builder/plots/student-tokens.svg)",
        "- 31 rows of `low-temperature` have an answer that its verifier calls wrong.",
        "- 249 of 1,301 rows of `low-temperature` have no verdict on their answer, or one that says neither correct "
        "nor wrong: 210 were not verified, 39 could not be.",
        "- 190 of 1,301 rows of `low-temperature` at temperature 0.65 have no score",
        "builder select --from org/toy@v3 selection.selector=random",
        "hf download org/toy --repo-type dataset --revision v3 --local-dir rebuilt",
        "@misc{toy-v3,\n  title = {toy},\n  author = {org},\n",
    ):
        assert said in text, said
    assert "2601.09088" not in text, "no row of this release was chosen by divergence"


def test_every_number_in_the_text_comes_from_the_manifest() -> None:
    """Change all numbers: none of the old ones is left (but those of the method and of column descriptions)."""

    def shifted(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: inner if key == "format" else shifted(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [shifted(inner) for inner in value]
        return value + 1_000 if isinstance(value, int | float) and not isinstance(value, bool) else value

    numbers = re.compile(r"\d[\d,]*(?:\.\d+)?")
    before, after = (
        numbers.findall(_own_words(render_card(m))) for m in (manifest(), shifted(copy.deepcopy(manifest())))
    )
    common = {a for a, b in zip(before, after, strict=True) if a == b}
    versions = {"2", "3", "2026", "11", "21", "22", "1" * 40, "5" * 40, "7" * 40, "4.0"}
    method = {"5", "25", "50", "75", "95"}  # quantiles and word 5-grams
    differences = {"190", "256"}  # rows less rows with a score; sha256
    assert common <= versions | method | differences, common
    assert len(set(before)) > 90


def _own_words(text: str) -> str:
    """Without front matter, the descriptions of columns, hashes and BibTeX."""
    body = re.sub(r"(?s)## Columns.*?## Limits|## Cite it.*", "", text.split("---\n", 2)[2])
    return re.sub(r"&#\d+;|\b[0-9a-f]{12,64}…?", "", body)


@pytest.mark.parametrize(
    "changes",
    [
        {"student": None},
        {"statistics": None},
        {"statistics": statistics() | {"decontamination": None, "pass_rate": None, "verdicts": []}},
        {"history": []},
        {"history": [HISTORY[0] | {"changes": None}]},
        {"withdrawn": ["p1", "r2"]},
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
    assert re.findall(r"[^\n]\n#", text) == [], "a heading stands alone"
    DatasetCard(text)


def test_the_card_names_no_address_but_that_of_the_method() -> None:
    assert "://" not in render_card(manifest()).replace("hf://datasets/", "")


def test_a_template_cannot_reach_into_the_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(card, "_environment", card._environment.__wrapped__)  # compiled anew each time
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


def test_versions_are_told_newest_first_and_old_ones_folded_away() -> None:
    entries = [HISTORY[0] | {"version": f"v{number}"} for number in range(1, 6)]
    said = re.findall(
        r"\*\*(v\d)\*\*.*rows\. (.*)|<(/?details)>", render_card(manifest(history=entries)).split("## Sch")[0]
    )
    same = "Nothing that decides rows changed."
    assert said == [
        ("v5", same, ""), ("v4", same, ""), ("v3", same, ""), ("", "", "details"), ("v2", same, ""),
        ("v1", "The first version.", ""), ("", "", "/details"),
    ]  # fmt: skip


def test_the_toy_manifest_is_one_by_the_schema() -> None:
    jsonschema.validate(manifest(), json.loads(resource("data_cards", "manifest.schema.json").read_text("utf-8")))


@pytest.mark.parametrize(
    "wrong", [{"stage": "../rl"}, {"stage": "a" * 101}, {"stage": ""}, {"epochs": 0}, {"epochs": -1}]
)
def test_a_stage_that_the_trainer_refuses_is_none_by_the_schema(wrong: dict[str, Any]) -> None:
    schema = json.loads(resource("data_cards", "manifest.schema.json").read_text("utf-8"))
    made = manifest()
    made["schedule"][0] |= wrong
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(made, schema)
    with pytest.raises(ValidationError):
        Stage.model_validate(made["schedule"][0])
    pattern = next(one.pattern for one in Stage.model_fields["name"].metadata if hasattr(one, "pattern"))
    assert schema["properties"]["schedule"]["items"]["properties"]["stage"]["pattern"] == pattern


@pytest.mark.parametrize(
    ("kind", "schema"), [("sft", RELEASE_SFT), ("grpo", RELEASE_GRPO), ("reward", RELEASE_REWARD)], ids=str
)
def test_a_release_of_one_kind_shows_the_columns_of_that_kind(kind: str, schema: Any) -> None:
    text = render_card(manifest(schedule=[manifest()["schedule"][0] | {"kind": kind, "epochs": 2.5}]))
    assert f"Configs of kind `{kind}`:" in text
    assert [row[0].strip("`") for row in tables(text)[-2][1:]] == schema.names
    assert "| 2.5 |" in text


def test_logprobs_that_are_released_have_their_columns_on_the_card() -> None:
    text = render_card(manifest(files=[*manifest()["files"], file("data/logprobs/train-00000-of-00001.parquet", 77)]))
    assert [row[0].strip("`") for row in tables(text)[-1][1:]] == LOGPROBS.schema.names
    assert "`logprobs` holds the teacher's logprobs of the selected replies" in text
    assert metadata(text)["configs"][-1]["config_name"] == "logprobs"


def test_mixed_rows_and_their_checkpoint_are_on_the_card() -> None:
    text = render_card(manifest(**MIXED))
    for said in (
        "2,705 rows of stage `low-temperature` have `policy = mixed`",
        "The other 2,606 rows",
        "3,101 rollouts at temperature 1.05, each up to 1.75 times the length of the selected reply; 3,002 hit that "
        "cap. Those were kept.",
        "2,903 were cut at a word's end, drawn from 0.35 … 0.85 of their tokens; the teacher finished 2,804; 2,705 of",
        f"weights `{'d' * 16}…`, after stage `warm-up` of build `{'c' * 16}`, trained from `org/student@5`",
        "eprint = {2601.09088}",
    ):
        assert said in text, said


def test_the_paper_is_cited_where_divergence_chose_the_rows() -> None:
    by_divergence = manifest()["selection"] | {"selector": "teacher_sentence_count"}
    text = render_card(manifest(selection=by_divergence))
    assert "eprint = {2601.09088}" in text
    assert "This release holds the rows of one selector" in text


def test_a_license_that_conflicts_is_named() -> None:
    source = manifest()["prompts"][0] | {"license": "cc-by-nc-4.0"}
    text = render_card(manifest(prompts=[source], teacher=manifest()["teacher"] | {"license": "cc-by-sa-4.0"}))
    assert (
        "- **Conflict** (non-commercial): `hf://datasets/org/q` is under cc-by-nc-4.0, for non-commercial use" in text
    )
    assert "- **Conflict** (share-alike): `teacher org/teacher` is under cc-by-sa-4.0" in text
    assert "- License of the teacher: `cc-by-sa-4.0`, as declared." in text


def test_a_license_that_the_hub_does_not_know_is_other_with_its_name() -> None:
    front = metadata(render_card(manifest(license="Our License\n---\n1.1")))
    assert (front["license"], front["license_name"]) == ("other", "our-license-1.1")


def test_plots_are_shown_only_where_they_are_files_of_the_release() -> None:
    assert "![" not in render_card(manifest(files=[one for one in manifest()["files"] if "plots" not in one["path"]]))


def test_a_file_of_ones_own_is_linked_by_its_path_in_the_release() -> None:
    sql = {"sql/rules/my rule (2).py": SHA, "sql/selectors/longest.sql": SHA}
    text = render_card(manifest(sql=sql, funnel=[manifest()["funnel"][0] | {"rule": "my rule (2)"}]))
    assert "[`my rule (2)`](.builder/sql/rules/my%20rule%20%282%29.py)" in text


def test_strings_of_strangers_stay_strings(tmp_path: Path) -> None:
    """Every string of the manifest that a recipe, a source or a model label can decide, hostile at once."""
    base = manifest()
    counted = statistics()
    counted["configs"][0] |= {"domains": [{"domain": EVIL, "rows": 1_301}]}
    counted["verdicts"][1] |= {"verifier": EVIL}
    counted["decontamination"]["benchmarks"][0] |= {"name": EVIL, "source": EVIL, "revision": EVIL}
    change = {"what": "parameter", "name": EVIL, "before": EVIL, "after": EVIL + "!"}
    text = render_card(
        base | {
            "repo": EVIL, "license": EVIL, "recipe_name": EVIL, "version": EVIL, "parent": EVIL,
            "prompts": [{"source": EVIL, "revision": EVIL, "license": EVIL, "rows": 1}],
            "teacher": {"model": EVIL, "revision": EVIL, "tokenizer": EVIL, "license": EVIL},
            "student": {"model": EVIL, "revision": EVIL, "system_prompt": EVIL},
            "sampling": base["sampling"]
            | {"system_prompt": EVIL, "reasoning_effort": EVIL, "extra_body": {EVIL: EVIL}},
            "selection": base["selection"] | {"selector": EVIL, "params": {EVIL: EVIL}},
            "funnel": [base["funnel"][0] | {"rule": EVIL}],
            "sql": {f"sql/rules/{EVIL}.sql": SHA},
            "score_remarks": {EVIL: 5},
            "statistics": counted,
            "history": [HISTORY[0] | {"changes": [change, change | {"what": EVIL, "before": None}]}],
        }
    )  # fmt: skip
    path = tmp_path / "README.md"
    path.write_text(text, encoding="utf-8")
    front = metadata_load(path)
    assert front is not None
    assert front["license"] == "other"
    assert front["pretty_name"] == EVIL
    assert DatasetCard.load(path).data.to_dict() == front
    plain, hostile = (Page(card.split("---\n", 2)[2]) for card in (render_card(base), text))
    assert hostile.headings == [EVIL_LINE + " " + EVIL_LINE, *plain.headings[1:]]
    assert "script" not in hostile.tags
    assert hostile.images == plain.images
    assert all(link.startswith((".builder/", "https://arxiv.org/abs/2601.09088")) for link in hostile.links)
    assert EVIL_LINE in hostile.text
    assert "\u202e" not in text.split("---\n", 2)[2]
    tables(text)


EVIL_LINE = " ".join(EVIL.split()).replace("\u202e", "\ufffd")


class Page(HTMLParser):
    """What a Markdown renderer makes of a card."""

    def __init__(self, body: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.images: list[str] = []
        self.headings: list[str] = []
        self.text = ""
        self.feed(MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(body))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "a":
            self.links.append(dict(attrs)["href"] or "")
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")
        if tag in ("h1", "h2"):
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("h1", "h2"):
            self.tags.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] in ("h1", "h2"):
            self.headings[-1] += data
        self.text += data


def file(path: str, rows: int | None = None) -> dict[str, Any]:
    return {"path": path, "sha256": SHA, "bytes": 7, "rows": rows}


def metadata(text: str) -> dict[str, Any]:
    parsed: dict[str, Any] = DatasetCard(text).data.to_dict()
    return parsed
