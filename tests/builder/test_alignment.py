"""Every kind of tokenizer against the slow reference: which sentence each token is of, and what is refused."""

import unicodedata
from functools import cache
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import reference
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from test_text import TEXTS
from test_tokens import CORPUS, MARKERS, PARTS, pairs, tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config

from builder.config import Student
from builder.divergence import divergence
from builder.student import Rendered, StudentTokenizer
from builder.text import canonical_text, completion_text, sentence_byte_ends, sentence_ends
from builder.tokens import AlignError, align, align_offsets, sentence_of_spans, spans_of_ends

SPELLING = ["byte-level", "unigram", "characters"]
"""Kinds whose tokens spell every text, parts of characters included."""
CHANGING = ["word-piece", "composing", "folding", "prepending"]
"""Kinds that lower-case and drop white space; NFC, with trimmed offsets; NFKC, with unknown words; Llama 2's prefix."""

TROUBLE = [
    "\n```", "\n````", "\n~~~", "```py\n", "```\n", "\\$", "$5", "$x", "x$", "$ ", "$$", "\\[", "\\]", "etc.", "e.g. ",
    "p. ", "\n 12. ", "\n          1. ", "3.14", ". ", "...", "?!", "…", "。", "”", "\r\n", "a",
]  # fmt: skip


@cache
def trained(kind: str) -> Tokenizer:
    if kind in SPELLING:
        return tokenizer(kind)
    if kind == "word-piece":
        result = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        result.normalizer = normalizers.BertNormalizer(lowercase=True)
        result.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        result.train_from_iterator(
            CORPUS, trainers.WordPieceTrainer(vocab_size=250, special_tokens=["[UNK]"], show_progress=False)
        )
    elif kind == "composing":
        result = Tokenizer.from_str(tokenizer("byte-level").to_str())
        result.normalizer = normalizers.NFC()
        result.post_processor = processors.ByteLevel(trim_offsets=True)
    elif kind == "prepending":
        result = Tokenizer.from_str(tokenizer("characters").to_str())
        result.pre_tokenizer = None
        result.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        result = Tokenizer(models.Unigram())
        result.normalizer = normalizers.NFKC()
        result.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        result.train_from_iterator(
            CORPUS,
            trainers.UnigramTrainer(vocab_size=150, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False),
        )
    result.add_special_tokens(MARKERS)
    return result


@cache
def student(kind: str) -> StudentTokenizer:
    fast = PreTrainedTokenizerFast(tokenizer_object=trained(kind))
    fast.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}:\n"
    with TemporaryDirectory() as folder:
        fast.save_pretrained(folder)
        Qwen3Config(vocab_size=len(fast)).save_pretrained(folder)
        return StudentTokenizer(Student(model=folder))


def rendered(kind: str, reasoning: str | None, answer: str | None) -> Rendered:
    return student(kind).render([{"role": "user", "content": "What is it?"}], reasoning, answer)


def spelt(kind: str, tokens: list[str], text: str) -> list[bytes] | None:
    """The text cut by the lengths of its tokens; None where they do not spell it. A dummy prefix has no character."""
    if kind == "word-piece":
        return None
    letters = kind in ("byte-level", "composing")  # one letter stands for one byte
    sizes = []
    for token in tokens:
        is_byte = token.startswith("<0x") and not letters
        sizes.append(1 if is_byte else len(token) if letters else len(token.replace("▁", " ").encode()))
    data = text.encode()
    extra = sum(sizes) - len(data)
    if extra == 1 and tokens[0][0] == "▁":
        sizes[0] -= 1
    elif extra:
        return None
    ends = np.cumsum(sizes).tolist()
    return [data[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def expected(kind: str, reasoning: str | None, answer: str | None) -> list[int]:
    """Sentence of each token by the reference. Raises AlignError where the reference knows of none."""
    formatted = reference.think_format(reasoning, answer)
    coded = trained(kind).encode(formatted.text, add_special_tokens=False)
    pieces = spelt(kind, coded.tokens, formatted.text)
    whole = kind in SPELLING or unicodedata.is_normalized("NFKC", formatted.text)
    text = reference.canonical(reasoning, answer)
    unknown = trained(kind).token_to_id("<unk>") in coded.ids
    if pieces is not None and whole and not unknown:
        cover = reference.cover_by_bytes(pieces, formatted.text)
    else:
        assert kind in CHANGING, "it spells every text"
        cover = reference.cover_by_offsets(untrimmed(coded.offsets))
        blank = [not token.strip("▁Ġ") for token in coded.tokens]
        cover = reference.without_inserted(cover, blank, formatted.text)
        if reference.uncovered(cover, formatted):
            raise AlignError
    return reference.token_sentences(cover, formatted.places(reasoning, answer), text, reference.sentence_ends(text))


def untrimmed(offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """White space back in the offsets of the tokens that it alone makes up."""
    found, last = [], 0
    for start, stop in offsets:
        found.append((min(start, last) if start == stop else start, stop))
        last = max(last, stop)
    return found


def sentences_of(spans: np.ndarray, reasoning: str | None, answer: str | None) -> list[int]:
    text = canonical_text(reasoning, answer)
    return sentence_of_spans(spans, text.encode(), sentence_byte_ends(text)).tolist()


@settings(max_examples=400, deadline=None)
@given(st.one_of(TEXTS, st.lists(st.sampled_from(TROUBLE), max_size=40).map("".join)))
@example("````md\n```py\na. b\n```\nc. d\n````\nOut. Side.")
@example("```\nit is no end:\n~~~\n```py\na. b\n```\nOut. Side.")
@example("It is \\$5. Then \\$x. y$ too.")
def test_sentences_are_those_of_the_reference(text: str) -> None:
    assert sentence_ends(text) == reference.sentence_ends(text)


@pytest.mark.parametrize("kind", SPELLING + CHANGING)
@settings(max_examples=60, deadline=None)
@given(pairs())
@example(("One.\n\n🤔 two. 每个。", "🤔。苹果。 x"))
@example(("e\u0301te\u0301. Ω is \u2126. 한 \u1112\u1161\u11ab.", "½ ﷺ … ㎏. İI."))
@example((None, "🤔. (a) \u200d b. The SUM is\u3000\u3000three."))
@example(("the sum  is  \n\n three. \x07 no. \ufffd. <think> is a tag.", "\u0301x </think> y."))
@example((None, "\ta. \u2028 b.\x85 c"))
def test_every_token_is_of_the_sentence_of_the_reference(kind: str, parts: tuple[str | None, str | None]) -> None:
    """Or the student is refused: then the reference finds text that no token covers, or tokens that share a run."""
    reasoning, answer = parts
    row = rendered(kind, reasoning, answer)
    try:
        found = sentences_of(student(kind).align(row, reasoning, answer), reasoning, answer)
    except AlignError as error:
        assert kind in CHANGING
        assert "same offsets" not in str(error), "no kind here fuses what it does not know"
        with pytest.raises(AlignError):
            expected(kind, reasoning, answer)
        return
    assert found == expected(kind, reasoning, answer)
    counted = [sentence for sentence in found if sentence >= 0]
    assert counted == sorted(counted), "as text does"
    assert len(counted) + found.count(-1) == len(row.completion_ids)


@pytest.mark.parametrize("kind", ["byte-level", "word-piece", "folding"])
@settings(max_examples=40, deadline=None)
@given(PARTS, PARTS, st.integers(0, 99))
@example("One and two is three. So the answer is three!", "It is. The sum of one and two.", 0)
def test_scores_are_those_of_the_reference(kind: str, reasoning: str, answer: str, seed: int) -> None:
    text = canonical_text(reasoning, answer)
    ends = sentence_byte_ends(text)
    try:
        student_sentence = expected(kind, reasoning, answer)
    except AlignError:
        assume(False)
    teacher_sentence = expected("byte-level", reasoning, answer)
    spans = student(kind).align(rendered(kind, reasoning, answer), reasoning, answer)
    pieces = spelt("byte-level", *_named("byte-level", completion_text(reasoning, answer)))
    assert pieces is not None
    random = np.random.default_rng(seed)
    teacher_values = random.uniform(-1, 0, len(teacher_sentence)).astype(np.float32)
    student_values = random.uniform(-3, 0, len(student_sentence)).astype(np.float32)
    found = divergence(
        teacher_values,
        sentence_of_spans(spans_of_ends(align(pieces, reasoning, answer)), text.encode(), ends),
        student_values,
        sentence_of_spans(spans, text.encode(), ends),
        len(ends),
    )
    slow = reference.scores(
        teacher_sentence, teacher_values.tolist(), student_sentence, student_values.tolist(), len(ends)
    )
    for name, value in slow.items():
        exact = getattr(found, name)
        if name.startswith("p_"):
            assert exact.tolist() == pytest.approx([np.nan if p is None else p for p in value], abs=1e-6, nan_ok=True)
        else:
            assert pytest.approx(value, abs=1e-6) == (exact.tolist() if isinstance(exact, np.ndarray) else exact), name


def _named(kind: str, text: str) -> tuple[list[str], str]:
    return trained(kind).encode(text, add_special_tokens=False).tokens, text


@pytest.mark.parametrize("kind", SPELLING)
@pytest.mark.parametrize("change", ["byte", "dropped", "doubled", "swapped"])
@settings(max_examples=40, deadline=None)
@given(PARTS, PARTS, st.data())
def test_a_corrupted_stream_is_never_a_number(
    kind: str, change: str, reasoning: str, answer: str, data: st.DataObject
) -> None:
    text = completion_text(reasoning, answer)
    pieces = spelt(kind, *_named(kind, text))
    assert pieces is not None
    size = len(canonical_text(reasoning, answer).encode())
    ends = align(pieces, reasoning, answer)
    assert ends[-1] == size
    whole = (np.diff(ends, prepend=0) == [len(piece) or -1 for piece in pieces]).tolist()  # text and nothing else
    own = [place for place, is_text in enumerate(whole) if is_text]
    if change == "swapped":
        own = [place for place in own if whole[place + 1 : place + 2] == [True] and pieces[place] != pieces[place + 1]]
    assume(own)
    place = data.draw(st.sampled_from(own))
    piece = pieces[place]
    if change == "byte":
        at = data.draw(st.integers(0, len(piece) - 1))
        other = piece[at] ^ data.draw(st.integers(1, 255))
        altered = [piece[:at] + bytes([other]) + piece[at + 1 :], *pieces[place + 1 :]]
    elif change == "swapped":
        altered = [*pieces[place + 1 : place + 2], piece, *pieces[place + 2 :]]
    else:
        altered = [piece] * {"dropped": 0, "doubled": 2}[change] + pieces[place + 1 :]
    stream = [*pieces[:place], *altered]
    assume(b"".join(stream) != text.encode())
    with pytest.raises(AlignError):
        align(stream, reasoning, answer)


@pytest.mark.parametrize("kind", SPELLING + CHANGING)
def test_corrupted_tokens_of_a_student_are_refused(kind: str) -> None:
    reasoning, answer = "One and two is three. It is so.", "So the answer is three."
    row = rendered(kind, reasoning, answer)
    ids, pieces = row.completion_ids, row.pieces
    middle = next(i for i in range(len(ids) // 3, len(ids)) if ids[i] != ids[i + 1])
    for changed in (
        [*range(middle), *range(middle + 1, len(ids))],
        [*range(middle + 1), *range(middle, len(ids))],
        [*range(middle), middle + 1, middle, *range(middle + 2, len(ids))],
    ):
        torn = Rendered(
            row.prompt_ids, [ids[i] for i in changed], [pieces[i] for i in changed if pieces], row.completion
        )
        with pytest.raises(AlignError, match="other tokens for the same text"):
            student(kind).align(torn, reasoning, answer)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([(0, 3), (3, 5)], "no token covers 'e', character 5 of 6"),
        ([(1, 3), (3, 6)], "no token covers 'a', character 0 of 6"),
        ([], "no token covers 'a', character 0 of 6"),
        ([(0, 3), (3, 7)], "offsets outside of its 6 characters"),
        ([(-1, 3), (3, 6)], "offsets outside of its 6 characters"),
        ([(0, 3), (5, 4), (3, 6)], "offsets outside of its 6 characters"),
        ([(0, 3), (3, 6), (1, 3)], "token 2 goes back to character 1"),
        ([(0, 6), (3, 4)], "token 1 goes back to character 3"),
        ([(0, 3), (3, 6), (3, 6)], "token 2 and the one before it have the same offsets for ' de'"),
        ([(0, 2), (3, 3), (3, 6)], "no token covers 'c', character 2 of 6"),
        ([(0, 2), (2, 3), (3, 3), (3, 6)], "token 2 covers nothing, at character 3 inside the text"),
    ],
)
def test_offsets_that_prove_nothing_are_refused(offsets: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(AlignError, match=message):
        align_offsets("abc de", offsets, None, "abc de")


def test_offsets_by_hand() -> None:
    """A character shared by more tokens than it has bytes; a mark without a token; white space trimmed and dropped."""
    text = "½e\u0301 \n b"
    offsets = [(0, 1), (0, 1), (0, 1), (1, 2), (4, 4), (6, 7)]
    found = align_offsets(text, offsets, None, text)
    assert found.tolist() == [[0, 2], [0, 2], [0, 2], [2, 3], [3, 6], [8, 9]]
    assert found.dtype == np.int32
    assert sentence_of_spans(found, text.encode(), sentence_byte_ends(text)).tolist() == [0, 0, 0, 0, 0, 1]
    prefix = align_offsets("ab", [(0, 1), (0, 1), (1, 2)], None, "ab", [True, False, False])
    assert prefix.tolist() == [[0, 0], [0, 1], [1, 2]], "a prefix stands for no text"
    with pytest.raises(AlignError, match="the chat template has written a part of it"):
        align_offsets("ab", [(0, 2)], None, "cab")


def test_tokens_of_a_run_of_unknown_characters_are_told_apart_by_bytes_or_refused() -> None:
    """Their offsets are all those of the run: by them, every token of it would be of its first sentence."""
    reasoning, answer = "漢字。かな。", "So it is."
    row = rendered("unigram", reasoning, answer)
    found = sentences_of(student("unigram").align(row, reasoning, answer), reasoning, answer)
    assert found == expected("unigram", reasoning, answer)
    assert min(found.count(0), found.count(1)) > 3
    folding = Tokenizer.from_str(trained("unigram").to_str())
    folding.normalizer = normalizers.NFKC()
    coded = folding.encode("½ 漢字。かな。", add_special_tokens=False)
    with pytest.raises(AlignError, match="have the same offsets for '漢字'"):
        align_offsets("½ 漢字。かな。", coded.offsets, None, "½ 漢字。かな。")


@pytest.mark.parametrize("kind", SPELLING + CHANGING)
def test_a_student_of_any_kind_is_aligned(kind: str) -> None:
    """None is refused for its kind: words, capitals, numbers, white space, and characters that it may not know."""
    reasoning, answer = "The Sum is 3.\n\n\tSo  it IS 1 + 2. 🤔 Naïve!", "每个苹果三元。It is three."
    found = sentences_of(student(kind).align(rendered(kind, reasoning, answer), reasoning, answer), reasoning, answer)
    assert set(found) == {-1, 0, 1, 2, 3, 4}


def test_characters_become_bytes_at_every_length() -> None:
    text = "\x7f\x80\u07ff\u0800\uffff\U00010000\U0010ffff"
    spans = align_offsets(text, [(place, place + 1) for place in range(len(text))], None, text)
    assert [stop - start for start, stop in spans.tolist()] == [len(character.encode()) for character in text]
