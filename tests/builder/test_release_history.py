"""What changed from version to version, from two manifests."""

from typing import Any

from test_card import MIXED, manifest

from builder.release_history import history


def first(**changes: Any) -> dict[str, Any]:
    made = manifest(version="v1", parent=None, **changes)
    del made["history"]
    return made | {"history": history(None, made)}


def after(parent: dict[str, Any], **changes: Any) -> list[dict[str, Any]]:
    made = manifest(version="v2", parent="v1", **changes)
    del made["history"]
    return history(parent, made)


def changed(**changes: Any) -> list[tuple[Any, ...]]:
    found = after(first(), **changes)[-1]["changes"]
    return [(one["what"], one["name"], one["before"], one["after"]) for one in found]


def test_a_first_version_has_no_changes_and_rows_in_training_order() -> None:
    rows = {"low-temperature": 1301, "rl": 1202, "candidates": 9104}
    created = "2026-11-22T00:00:00+00:00"
    assert first()["history"] == [{"version": "v1", "created": created, "rows": rows, "changes": []}]


def test_versions_that_say_the_same_differ_in_nothing() -> None:
    found = after(first())
    assert [(entry["version"], entry["changes"]) for entry in found] == [("v1", []), ("v2", [])]


def test_a_parent_without_a_history_gets_one_that_owns_up_to_it() -> None:
    old = first()
    del old["history"]
    assert [entry["changes"] for entry in after(old)] == [[], []]
    assert [entry["changes"] for entry in after(old | {"parent": "v0"})] == [None, []]


def test_other_rules_and_parameters_are_named() -> None:
    selection = manifest()["selection"] | {
        "rules": ["refusal"], "params": {"teacher_margin": 0.25, "ngram_words": 13}, "keep": 3, "selector": "random",
    }  # fmt: skip
    assert changed(selection=selection) == [
        ("rule", "answer_wrong", "asked for", None),
        ("selection", "selector", "longest", "random"),
        ("selection", "keep", 2, 3),
        ("parameter", "teacher_margin", 0.15, 0.25),
        ("rule", "refusal", None, "asked for"),
        ("parameter", "ngram_words", None, 13),
    ]


def test_rows_are_told_by_their_hash_not_by_their_number() -> None:
    one, two = manifest()["schedule"]
    files = [file if "candidates" not in file["path"] else file | {"sha256": "e" * 64} for file in manifest()["files"]]
    assert changed(schedule=[one | {"rowset_hash": "f" * 64}, two], files=files) == [
        ("config", "low-temperature", 1301, 1301),
        ("config", "candidates", 9104, 9104),
    ]


def test_how_a_stage_is_trained_is_compared() -> None:
    one, two = manifest()["schedule"]
    assert changed(schedule=[one | {"epochs": 2.5}, two | {"init": "base"}]) == [
        ("init of stage", "rl", "previous", "base"),
        ("epochs of stage", "low-temperature", None, 2.5),
    ]


def test_files_written_anew_with_the_same_rows_are_no_change() -> None:
    hashed = [file | {"rowset_hash": "1" * 64} for file in manifest()["files"]]
    anew = [file | {"sha256": "e" * 64} for file in hashed]
    assert after(first(files=hashed), files=anew)[-1]["changes"] == []


def test_models_sources_sql_sampling_and_license_are_compared() -> None:
    base = manifest()
    assert changed(
        teacher=base["teacher"] | {"revision": "8" * 40},
        student=None,
        sql=base["sql"] | {"sql/selectors/longest.sql": "b" * 64},
        sampling=base["sampling"] | {"temperatures": [0.65], "samples": 7},
        prompts=base["prompts"][:1],
        license=None,
        withdrawn=["p1", "r2"],
    ) == [
        ("SQL", "sql/selectors/longest.sql", "a" * 64, "b" * 64),
        ("teacher", "revision", "7" * 40, "8" * 40),
        ("student", "model", "org/student", None),
        ("student", "revision", "5" * 40, None),
        ("student", "system_prompt", "Be\nbrief | exact.", None),
        ("sampling", "samples", 6, 7),
        ("sampling", "temperatures", "[0.65, 1.05]", "[0.65]"),
        ("source", "a|b.jsonl", 3307, None),
        ("license", "license", "mit", None),
        ("withdrawn", "prompts and replies", None, 2),
    ]


def test_a_mix_names_its_settings_and_its_checkpoint() -> None:
    assert changed(**MIXED) == [
        ("mixed policy", "keep", None, "cap"),
        ("mixed policy", "length_cap", None, 1.75),
        ("mixed policy", "cut", None, "[0.35, 0.85]"),
        ("mixed policy", "temperature", None, 1.05),
        ("mixed policy", "off_policy_ratio", None, 2.6),
        ("mixed policy", "checkpoint", None, "d" * 64),
    ]


def test_a_history_only_grows() -> None:
    parent = first()
    second = manifest(version="v2", parent="v1", license="cc0-1.0") | {"history": after(parent, license="cc0-1.0")}
    third = manifest(version="v3", parent="v2")
    found = history(second, third)
    assert found[:2] == second["history"]
    assert [entry["version"] for entry in found] == ["v1", "v2", "v3"]
