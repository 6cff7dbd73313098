"""Licenses of sources against that of a release: what conflicts, what is fine, what nobody can say."""

import pytest

from builder.licenses import hub_license, license_conflicts


def kinds(license_: str | None, *declared: str | None) -> list[str]:
    sources = [{"source": str(place), "license": one} for place, one in enumerate(declared)]
    return [one["kind"] for one in license_conflicts(license_, sources)]


@pytest.mark.parametrize(
    ("source", "release"),
    [
        ("mit", "apache-2.0"), ("CC BY 4.0", "mit"), ("cc-by-4.0", None), ("MIT License", "our-own"),
        ("cc-by-sa-3.0", "cc-by-sa-4.0"), ("cc-by-sa-4.0", "CC-BY-SA-4.0"), ("cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
        ("cc-by-nc-sa-4.0", "cc-by-nc-sa-4.0"), ("odbl", "odbl"), ("gpl-3.0", "agpl-3.0"),
    ],
)  # fmt: skip
def test_what_a_license_allows_is_no_conflict(source: str, release: str | None) -> None:
    assert kinds(release, source) == []


@pytest.mark.parametrize(
    ("source", "release", "kind"),
    [
        ("cc-by-nc-4.0", "mit", "non-commercial"),
        ("cc-by-nc-4.0", "cc-by-sa-4.0", "non-commercial"),
        ("cc-by-nc-sa-4.0", "apache-2.0", "non-commercial"),
        ("cc-by-nc-sa-4.0", "cc-by-nc-4.0", "share-alike"),
        ("cc-by-sa-4.0", "cc-by-4.0", "share-alike"),
        ("cc-by-sa-4.0", "cc-by-sa-3.0", "share-alike"),
        ("gpl-2.0", "mit", "share-alike"),
        ("cc-by-nd-4.0", "cc-by-nd-4.0", "no-derivatives"),
        ("cc-by-nc-nd-4.0", None, "no-derivatives"),
        (None, "mit", "unknown"),
        ("  ", "mit", "unknown"),
        ("unknown", "mit", "unknown"),
        ("llama2", "mit", "unknown"),
        ("terms of a shop", "mit", "unknown"),
        ("cc-by-nc-4.0", None, "unknown"),
        ("cc-by-sa-4.0", "our-own", "unknown"),
    ],
)
def test_what_a_license_asks_and_a_release_does_not_give_is_named(source: str, release: str, kind: str) -> None:
    assert kinds(release, source) == [kind]


def test_a_conflict_says_who_asks_what() -> None:
    sources = [{"source": "q.jsonl", "license": "cc-by-sa-4.0", "rows": 3, "revision": None}] * 2
    assert license_conflicts("MIT", sources, {"model": "org/t", "license": "cc-by-nc-4.0"}) == [
        {
            "source": "q.jsonl",
            "license": "cc-by-sa-4.0",
            "kind": "share-alike",
            "reason": "is under cc-by-sa-4.0, to be shared under cc-by-sa-4.0 or gpl-3.0",
        },
        {
            "source": "teacher org/t",
            "license": "cc-by-nc-4.0",
            "kind": "non-commercial",
            "reason": "is under cc-by-nc-4.0, for non-commercial use only; mit allows commercial use",
        },
    ]


def test_a_teacher_without_declared_terms_is_not_judged() -> None:
    assert license_conflicts("mit", [], {"model": "org/t", "revision": None}) == []


@pytest.mark.parametrize(
    ("declared", "front"),
    [
        ("MIT", {"license": "mit"}),
        ("Apache 2.0", {"license": "apache-2.0"}),
        ("openrail++", {"license": "openrail++"}),
        (None, {"license": "unknown"}),
        ("", {"license": "unknown"}),
        ("Ours (draft)", {"license": "other", "license_name": "ours-draft"}),
        ("？", {"license": "other", "license_name": "unnamed"}),
    ],
)
def test_front_matter_has_a_license_that_the_hub_takes(declared: str | None, front: dict[str, str]) -> None:
    assert hub_license(declared) == front
