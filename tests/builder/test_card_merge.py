"""What people write on a card survives every new version; what builder wrote is renewed, and nothing goes unseen."""

import pytest
import yaml
from huggingface_hub import DatasetCard
from test_card import MIXED, manifest, metadata

from builder.card import merge_card, render_card
from builder.errors import ReleaseError

V3 = render_card(manifest())
V4 = render_card(manifest(version="v4", parent="v3", seed=99))
V5 = render_card(manifest(version="v5", parent="v4", license="cc0-1.0"))
OWN = """## Ethics

Read by hand:

```
## Limits
```

### A detail"""


def inserted(card: str, before: str, text: str) -> str:
    assert card.count(before) == 1
    return card.replace(before, f"{text}\n\n{before}")


def test_a_card_that_nobody_edited_becomes_the_new_one() -> None:
    assert merge_card(V4, V3) == V4
    assert merge_card(V4, V4) == V4


@pytest.mark.parametrize(
    "before", ["<!-- builder wrote", "## Use it", "## Limits\n", "## Rebuild it", "<!-- end of what"]
)
def test_a_section_of_ones_own_survives_two_versions_where_it_stands(before: str) -> None:
    edited = inserted(V3, before, OWN)
    once = merge_card(V4, edited)
    assert once == inserted(V4, before, OWN)
    assert merge_card(V5, once) == inserted(V5, before, OWN)


def test_text_below_the_closing_line_survives_with_headings_that_builder_uses() -> None:
    note = "Thanks to all.\n\n## Limits\n\nOurs are others."
    once = merge_card(V4, f"{V3}\n{note}\n")
    assert once == f"{V4}\n{note}\n"
    assert merge_card(V5, once) == f"{V5}\n{note}\n"


def test_a_card_that_builder_did_not_write_stays_below_the_generated_one() -> None:
    once = merge_card(V3, "---\nlanguage: de\n---\n# Ours\n\nWords.\n")
    assert once.endswith("-->\n\n# Ours\n\nWords.\n")
    assert metadata(once)["language"] == "de"
    assert merge_card(V4, once).endswith("-->\n\n# Ours\n\nWords.\n")
    assert merge_card(V3, "") == V3
    assert merge_card(V3, "\ufeff---\r\nlicense: mit\r\n---\r\n") == V3


def test_what_an_editor_does_to_white_space_is_no_edit() -> None:
    changed = V3.replace("\n\n## ", "  \n\n\n## ").replace("\n", "\r\n")
    assert merge_card(V4, changed) == V4


def test_a_section_of_ones_own_outlives_the_generated_one_before_it() -> None:
    mixed = render_card(manifest(**MIXED))
    once = merge_card(V4, inserted(mixed, "## What was checked", OWN))
    assert once == inserted(V4, "<!-- end of what", OWN)
    assert merge_card(V5, once) == inserted(V5, "<!-- end of what", OWN)


def test_a_sentence_put_into_a_generated_section_is_never_lost_in_silence() -> None:
    with pytest.raises(ReleaseError, match=r"changed by hand inside 'Limits'.*would be lost.*heading of its own"):
        merge_card(V4, V3.replace("## Limits\n", "## Limits\n\nMore of them.\n"))
    with pytest.raises(ReleaseError, match="inside 'top'"):
        merge_card(V4, V3.replace("# toy v3", "# Our toy"))


def test_a_generated_section_that_was_deleted_comes_back() -> None:
    start, end = V3.index("## Limits\n"), V3.index("## Rebuild it")
    assert merge_card(V4, V3[:start] + V3[end:]) == V4


@pytest.mark.parametrize("line", ["<!-- builder wrote", "<!-- end of what"])
def test_without_one_of_the_marker_lines_nothing_is_written(line: str) -> None:
    lines = [one for one in V3.split("\n") if not one.startswith(line)]
    with pytest.raises(ReleaseError, match=r"it has 1: what people wrote cannot be told.*Restore the lines"):
        merge_card(V4, "\n".join(lines))


def test_front_matter_of_others_stays_and_that_of_old_rows_goes() -> None:
    front = {
        "license": "other", "license_name": "ours", "license_link": "LICENSE", "pretty_name": "Our set",
        "tags": ["maths", "synthetic"], "language": ["en", "de"], "annotations_creators": "machine-generated",
        "extra_gated_prompt": "Agree: yes?", "dataset_info": [{"config_name": "low-temperature", "splits": []}],
        "size_categories": ["n<1K"], "viewer": False,
    }  # fmt: skip
    merged = merge_card(V4, f"---\n{yaml.safe_dump(front)}---\n{V3.split('---', 2)[2]}")
    found = metadata(merged)
    assert found == metadata(V4) | {
        "tags": [*metadata(V4)["tags"], "maths"],
        "language": ["en", "de"],
        "annotations_creators": "machine-generated",
        "extra_gated_prompt": "Agree: yes?",
        "viewer": False,
    }
    assert DatasetCard(merged).content == merged
    other = render_card(manifest(license="Our Own"))
    kept = metadata(merge_card(other, f"---\n{yaml.safe_dump(front)}---\n"))
    assert (kept["license_name"], kept["license_link"]) == ("our-own", "LICENSE")


@pytest.mark.parametrize("front", ["a: [", "- a\n- b", "1: a", "a: &x 1\nb: *y"])
def test_front_matter_that_is_no_yaml_mapping_is_refused_in_words(front: str) -> None:
    with pytest.raises(ReleaseError, match=r"front matter of the README\.md that is there is no"):
        merge_card(V4, f"---\n{front}\n---\n# x\n")
