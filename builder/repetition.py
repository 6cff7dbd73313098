"""Repetition of word n-grams in one text, by the pass that is worth it: compiled code takes half a second to load."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from builder.ngrams import Codes, Marks, by_numpy
from builder.scripts import kinds

Loop = Callable[[Codes, Marks, Marks], tuple[int, int, int]]


class Repetition(NamedTuple):
    """Occurrences of the most repeated 20-gram of words, overlapping ones included; different 4-grams; all 4-grams."""

    most: int
    different: int
    fours: int


def repetition(codes: Codes, quiet: Marks, *, fast: bool = False) -> Repetition:
    """Repetition in a text of code points `codes`, each of which stands in prose, a formula or code: `quiet`.

    Both of shape (characters,). `fast` asks for compiled code: some ten times as fast, once it is loaded.
    """
    run = (compiled() if fast else None) or by_numpy
    most, different, fours = run(codes, quiet, kinds())
    return Repetition(int(most), int(different), int(fours))


@cache
def compiled() -> Loop | None:
    """The compiled pass; None where it cannot be kept on disk between processes."""
    try:
        from builder.ngram_loop import repetition_loop
    except RuntimeError:  # numba finds no folder where it may keep machine code
        return None
    loop: Loop = repetition_loop
    return loop
