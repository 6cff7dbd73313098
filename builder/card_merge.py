"""The card of a new version over one that people have edited: what they wrote stays, what builder wrote is renewed.

What builder writes stands between two marker lines. Sections are headings of level 1 or 2 with all that follows; people
may put sections of their own before, after and between the generated ones. The closing marker holds a check of each
generated section, so that words put into one are seen, never overwritten in silence.
"""

import re
from typing import Any, Final

import yaml
from huggingface_hub import DatasetCard, DatasetCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from builder.errors import ReleaseError
from builder.identity import sha256_hex

_BEGIN: Final = (
    "<!-- builder wrote the sections from here to its closing line, and writes them anew with every version. "
    "Sections of your own stay, before, after and between them. -->"
)
_END: Final = "<!-- end of what builder wrote; checks: {} -->"
_MARKERS: Final = re.compile(
    r"^<!-- (builder wrote the sections|end of what builder wrote)\b(.*)-->[ \t]*$", re.MULTILINE
)
_FENCE: Final = re.compile(r"^ {0,3}(`{3,}|~{3,})")
_HEADING: Final = re.compile(r"^#{1,2} +(.*?)[ #]*$")
_LICENSE_DETAILS: Final = ("license_name", "license_link", "license_details")
_OF_OLD_ROWS: Final = ("dataset_info", "config_names")
"""Front matter that counts or names the rows of an earlier version: `datasets` would refuse the new ones for it."""


def generated_card(metadata: dict[str, Any], body: str) -> str:
    """A card of nothing but generated text, its front matter as huggingface_hub reads it."""
    checks = "; ".join(f"{title}={_check(text)}" for title, text in _sections(body))
    return _card(metadata, f"{_BEGIN}\n\n{body.strip()}\n\n{_END.format(checks)}")


def merge_card(rendered: str, existing: str) -> str:
    """`rendered`, the card of a new version, with what people added to `existing`, that of the version before.

    Their sections stay where they stand; text without markers stays below the generated one. Of the front matter
    generated keys win, tags are united, other keys stay. Raises ReleaseError where a generated section was edited or a
    marker line is gone, for then something would be lost, and for front matter that is no YAML.
    """
    metadata, body = _split(rendered)
    old_metadata, old_body = _split(existing)
    before, old, after = _parts(old_body)
    _, new, _ = _parts(body)
    own = _own_sections(old)
    blocks = []
    for title, text in _sections(new[0]):
        blocks += [text.strip(), *own.pop(title, [])]
    blocks += [text for texts in own.values() for text in texts]
    inner = "\n\n".join([_BEGIN, *blocks, new[1]])
    return _card(_merged(metadata, old_metadata), "\n\n".join(filter(None, (before, inner, after))))


def _card(metadata: dict[str, Any], body: str) -> str:
    """Front matter and body as one card. Raises ReleaseError where the Hub's client reads anything else from it."""
    card = f"---\n{DatasetCardData(**metadata).to_yaml()}\n---\n\n{body.strip()}\n"
    parsed: Any = DatasetCard(card).data
    read = parsed.to_dict()
    if read != metadata:
        odd = sorted(key for key in read.keys() | metadata.keys() if read.get(key) != metadata.get(key))
        raise ReleaseError(
            f"The front matter of the card does not survive huggingface_hub: {', '.join(map(str, odd))} would be read "
            "otherwise than written. Mend these keys in the README.md that is published."
        )
    return card


def _split(card: str) -> tuple[dict[str, Any], str]:
    """Front matter and body, with line ends of one kind."""
    text = card.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    match = REGEX_YAML_BLOCK.search(text)
    if match is None:
        return {}, text
    try:
        metadata = yaml.safe_load(match.group(2)) or {}
    except yaml.YAMLError as error:
        raise ReleaseError(
            f"The front matter of the README.md that is there is no YAML: {error}. Its keys would be lost; mend it."
        ) from error
    if not isinstance(metadata, dict) or not all(isinstance(key, str) for key in metadata):
        raise ReleaseError(
            "The front matter of the README.md that is there is no mapping with words as keys. The Hub cannot read it, "
            "and its keys would be lost; mend it."
        )
    return metadata, text[match.end() :]


def _merged(new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    gone = {*_OF_OLD_ROWS, *(_LICENSE_DETAILS if new["license"] != "other" else ())}
    kept = {key: value for key, value in old.items() if key not in gone and key not in new and value is not None}
    tags = old.get("tags") or []
    added = [tag for tag in (tags if isinstance(tags, list) else [tags]) if tag not in new["tags"]]
    return {**new, "tags": [*new["tags"], *added], **kept}


def _parts(body: str) -> tuple[str, tuple[str, str], str]:
    """What stands before the markers, what stands between them with the closing line, and what stands after."""
    marks = list(_MARKERS.finditer(body))
    if not marks:
        return "", ("", ""), body.strip()
    if [mark[1] for mark in marks] != ["builder wrote the sections", "end of what builder wrote"]:
        raise ReleaseError(
            "The README.md that is there should have an opening and a closing marker line of builder, in this order; "
            f"it has {len(marks)}: what people wrote cannot be told from what builder wrote. Restore the lines, or "
            "remove them with all the text that builder wrote."
        )
    first, last = marks
    inside = body[first.end() : last.start()]
    return body[: first.start()].strip(), (inside, last.group().strip()), body[last.end() :].strip()


def _own_sections(old: tuple[str, str]) -> dict[str, list[str]]:
    """Sections that people put between generated ones, by the generated section before them."""
    checks = dict(re.findall(r"(?:; )?([^;=]+)=([0-9a-f]{8})", old[1].partition("checks: ")[2]))
    found: dict[str, list[str]] = {}
    sections = _sections(old[0])
    written = {title for title, text in sections if checks.get(title) == _check(text)}
    if edited := [title for title, _ in sections if title in checks and title not in written]:
        raise ReleaseError(
            f"The README.md that is there was changed by hand inside {', '.join(map(repr, edited))}, which builder "
            "writes anew with every version: the change would be lost. Move it under a heading of its own, or below "
            "the closing marker, and put the generated section back or delete it."
        )
    place = ""
    for title, text in sections:
        if checks.get(title) == _check(text):
            place = title
        elif text.strip():
            found.setdefault(place, []).append(text.strip())
    return found


def _sections(text: str) -> list[tuple[str, str]]:
    """Title and text of each section. The first is titled `top` whatever its heading: that names the version."""
    sections: list[tuple[str, list[str]]] = [("top", [])]
    fence = ""
    for line in text.strip().split("\n"):
        if match := _FENCE.match(line):
            if not fence:
                fence = match[1]
            elif line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
        elif not fence and (heading := _HEADING.match(line)) and any(part.strip() for part in sections[0][1]):
            sections.append((heading[1], []))
        sections[-1][1].append(line)
    return [(title, "\n".join(lines)) for title, lines in sections]


def _check(text: str) -> str:
    """8 hex digits of a section; what an editor does to white space at the ends of lines does not count."""
    return sha256_hex("\n".join(line.rstrip() for line in text.strip().split("\n")))[:8]
