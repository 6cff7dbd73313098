"""The rules of the filter benchmark as Polars expressions.

Rust's regular expressions have no look-around and no back-references, so the definitions are those that decide the same
on the benchmark's texts: no formula in code, no sentence end in a formula, no blank line in code, fences of three
backticks. No expression finds a loop at a text's end: that is Python, reply by reply.
"""

import polars as pl
from filter_plain import CJK, tail_loop

# What stands between the private characters is a formula; a formula may not be followed by a digit.
_FORMULA = r"(\$[^\s$](?:[^$\n]{0,999}[^\s$\\])?\$)(\D|$)|(?s:(\\\(.{1,1000}?\\\)))"
_MARKED = "\ue000[^\ue001]*\ue001"
_CODE = r"(?ms)(^[ \t]*```[^`\n]*\n.*?^[ \t]*```[ \t]*$\n?)"
_IN_CODE = "\ue002[^\ue003]*\ue003"
_MARKS = "[\ue000-\ue004]"
_ABBREVIATION = (
    r"(?m)((?:^|[\s(\[\"'“‘])"
    r"(?:e\.g|i\.e|cf|vs|etc|approx|resp|al|Mr|Mrs|Ms|Dr|Prof|St|Fig|Eq|Eqs|Sec|Thm|Nos|Vol|pp|p)"
    r"|^[ \t]{0,8}\d{1,3})\."
)
_END = r"(\n+|[.!?]+[\"'”’)\]*_]*([ \t\r\f\v\u{a0}\u{3000}])|[。！？]+[”’」』）]*)"
_RANGES = {
    "latin": r"A-Za-z\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{24f}\u{1e00}-\u{1eff}",
    "cyrillic": r"\u{400}-\u{52f}",
    "han": r"\u{3400}-\u{4dbf}\u{4e00}-\u{9fff}",
}
_WORD = rf"{_MARKED}|[{CJK}]|[[\p{{L}}\p{{N}}_]--[{CJK}]]+|[^\p{{L}}\p{{N}}_\s]"


def violations(rows: pl.DataFrame, params: dict[str, float]) -> pl.DataFrame:
    """A column for each rule: whether the reply breaks it."""
    parts = [pl.col(name).fill_null("") for name in ("reasoning", "answer")]
    both = (pl.col("reasoning").fill_null("").str.len_chars() > 0) & (
        pl.col("answer").fill_null("").str.len_chars() > 0
    )
    raw = pl.concat_str(parts[0], pl.when(both).then(pl.lit("\n\n")).otherwise(pl.lit("")), parts[1])
    frame = rows.with_columns(
        text=raw.str.replace_all(_CODE, "\ue002$1\ue003").str.replace_all(_FORMULA, "\ue000$1$3\ue001$2")
    ).with_columns(bare=pl.col("text").str.replace_all(_IN_CODE, ""))
    frame = frame.with_columns(prose=pl.col("bare").str.replace_all(_MARKED, ""))
    numbers = frame.select(
        "response_id",
        "finish_reason",
        *[part.str.strip_chars().str.len_chars().alias(f"{part.meta.output_name()}_chars") for part in parts],
        tags=sum(part.str.count_matches("(?i)</?think>") for part in parts),
        markers=sum(
            part.str.count_matches(r"<\|(?:start|end|message|channel|constrain|return|call)\|>") for part in parts
        ),
        tail_loop=pl.max_horizontal(part.map_elements(tail_loop, return_dtype=pl.Int64) for part in parts),
        **{name: pl.col("prose").str.count_matches(f"[{ranges}]") for name, ranges in _RANGES.items()},
    )
    for name, found in (
        ("sentences", repeated(frame, _sentences(), 20)),
        ("paragraphs", repeated(frame, _paragraphs(), 80)),
        ("longest", longest_paragraph(frame)),
        ("ngrams", ngrams(frame)),
    ):
        numbers = numbers.join(found, on="response_id", how="left", suffix=name)
    return numbers.select("response_id", **rules(params))


def rules(params: dict[str, float]) -> dict[str, pl.Expr]:
    """What breaks each rule."""
    every, han, cyrillic = pl.sum_horizontal(*_RANGES), pl.col("han"), pl.col("cyrillic")
    most = pl.max_horizontal(han, cyrillic)
    is_latin = pl.col("latin") >= most
    # Unsigned numbers, so nothing is subtracted.
    foreign = pl.when(is_latin).then(han + cyrillic).otherwise(pl.min_horizontal(han, cyrillic)) / every
    latin = pl.when(is_latin).then(0).otherwise(pl.col("latin")) / every
    found = {
        "reasoning_missing": pl.col("reasoning_chars") == 0,
        "answer_missing": pl.col("answer_chars") == 0,
        "response_truncated": pl.col("finish_reason").ne_missing("stop"),
        "think_tags_broken": pl.col("tags") > 0,
        "channel_markers_left": pl.col("markers") > 0,
        "too_short": pl.col("reasoning_chars") + pl.col("answer_chars") < params["min_response_chars"],
        "paragraph_too_long": pl.col("longest") > params["max_paragraph_chars"],
        "sentence_repeated": pl.col("sentences") > params["max_sentence_repeats"],
        "paragraph_repeated": pl.col("paragraphs") > params["max_paragraph_repeats"],
        "ngram_repeated": pl.col("twenties") > params["max_ngram_repeats"],
        "low_ngram_diversity": pl.col("share") < params["min_distinct_4gram_share"],
        "tail_loop": pl.col("tail_loop") > params["max_tail_loop_chars"],
        "mixed_language": (every > 0) & ((foreign > params["max_foreign_share"]) | (latin > params["max_latin_share"])),
    }
    return {name: rule.fill_null(False) for name, rule in found.items()}


def _sentences() -> pl.Expr:
    """Sentences of the text without code; the dots of abbreviations and numbering get another character."""
    kept = pl.col("bare").str.replace_all(_ABBREVIATION, "$1\ue004")
    return kept.str.replace_all(_END, "$1\ue005").str.split("\ue005")


def _paragraphs() -> pl.Expr:
    return pl.col("text").str.replace_all(r"\n[ \t\r]*\n\s*", "\ue005").str.split("\ue005")


def repeated(frame: pl.DataFrame, spans: pl.Expr, least: int) -> pl.DataFrame:
    """Occurrences of the most repeated span with so many characters of prose."""
    collapsed = pl.col("span").str.strip_chars().str.replace_all(r"\s+", " ")
    hidden = pl.col("span").str.extract_all(f"{_MARKED}|{_IN_CODE}").list.join("").str.replace_all(_MARKS, "")
    name = "sentences" if least == 20 else "paragraphs"
    return (
        frame.lazy()
        .select("response_id", span=spans)
        .explode("span")
        .filter(pl.col("span").str.len_chars() >= least)
        .select("response_id", span=collapsed.str.replace_all(_MARKS, ""), hidden=hidden.str.len_chars())
        .filter(pl.col("span").str.len_chars() >= least + pl.col("hidden"))
        .group_by("response_id", "span")
        .len()
        .group_by("response_id")
        .agg(pl.col("len").max().alias(name))
        .collect()
    )


def longest_paragraph(frame: pl.DataFrame) -> pl.DataFrame:
    """Characters of prose of the longest paragraph."""
    prose = pl.col("span").str.replace_all(f"{_MARKED}|{_IN_CODE}", "").str.len_chars()
    spans = frame.lazy().select("response_id", span=_paragraphs()).explode("span")
    return spans.group_by("response_id").agg(longest=prose.max()).collect()


def ngrams(frame: pl.DataFrame) -> pl.DataFrame:
    """Occurrences of the most repeated 20-gram of words, and different 4-grams over all; a hash stands for a run."""
    words = (
        frame.lazy()
        .select("response_id", word=pl.col("bare").str.extract_all(_WORD))
        .explode("word")
        .drop_nulls("word")
        .with_columns(h1=pl.col("word").hash(), row=pl.col("response_id").rle_id())
        .drop("word")
        .with_columns(h2=_joined("h1", "h1", 1))
        .with_columns(h4=_joined("h2", "h2", 2))
        .with_columns(h8=_joined("h4", "h4", 4))
        .with_columns(h16=_joined("h8", "h8", 8))
        .with_columns(h20=_joined("h16", "h4", 16))
        .collect()
        .lazy()
    )
    whole = {size: pl.col("row") == pl.col("row").shift(1 - size) for size in (4, 20)}
    fours = words.filter(whole[4]).group_by("response_id").agg(share=pl.col("h4").n_unique() / pl.len())
    twenties = words.filter(whole[20]).group_by("response_id", "h20").len()
    most = twenties.group_by("response_id").agg(twenties=pl.col("len").max())
    return fours.join(most, on="response_id", how="left").collect()


def _joined(first: str, second: str, behind: int) -> pl.Expr:
    """Hash of two runs of words, one behind the other."""
    return pl.struct(a=pl.col(first), b=pl.col(second).shift(-behind)).hash()
