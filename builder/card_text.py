"""Strings of strangers as they may stand on a card: never markup, never a way out of their place."""

import html
import json
import re
import shlex
from typing import Any, Final

_HARMLESS: Final = re.compile(r"[^`|\\$]+")
_MARKUP: Final = re.compile(r"[^\w\s.,:;/'\"()?%=+−–—…×≤≥-]")


def plain(value: Any) -> str:
    """One line of visible characters: line breaks become spaces, what hides or turns text becomes U+FFFD."""
    line = " ".join(str(value).split())
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in line)


def code(value: Any) -> str:
    """Inline code, in prose and in the cell of a table alike.

    Renderers disagree on escapes of `|` within backticks, so what holds one, or a backtick, is written as HTML.
    """
    text = plain(value)
    if not text:
        return "(empty)"
    if _HARMLESS.fullmatch(text):
        return f"`{text}`"
    return f"<code>{''.join(_entity(sign) for sign in text)}</code>"


def prose(value: Any) -> str:
    """Words of a sentence; every sign that Markdown, HTML or an automatic link could read as more is an entity."""
    text = _MARKUP.sub(lambda match: _entity(match.group()), plain(value))
    return text.replace("_", "&#95;").replace("://", "&#58;//").replace("www.", "www&#46;")


def cell(value: Any) -> str:
    """Our own words in the cell of a table: Markdown stays, a bar does not end the cell."""
    return html.escape(plain(value), quote=False).replace("|", "&#124;")


def quoted(value: Any) -> str:
    """A literal that Python and JSON read alike."""
    return json.dumps(plain(value), ensure_ascii=False)


def shell(value: Any) -> str:
    """One word of a command."""
    return shlex.quote(plain(value))


def bibtex(value: Any) -> str:
    """Text of a BibTeX field: signs that TeX reads otherwise are left out."""
    return re.sub(r"[\\{}$&#^_~%@\"]", " ", plain(value))


def number(value: Any) -> str:
    """1,234 or 0.412; `not counted` where nothing was."""
    if value is None:
        return "not counted"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _entity(sign: str) -> str:
    return sign if sign.isalnum() or sign in " .,;/()=-" else f"&#{ord(sign)};"
