"""How alike two principles are, cheaply enough to compare each with each."""

from __future__ import annotations


def trigrams(text: str) -> frozenset[str]:
    """Return the runs of three characters in `text`, ignoring case and counting each run of whitespace as one space."""
    padded = f" {' '.join(text.casefold().split())} "
    return frozenset(padded[start : start + 3] for start in range(len(padded) - 2))


def similarity(a: frozenset[str], b: frozenset[str]) -> float:
    """Return the Sørensen-Dice coefficient of two texts' trigrams, from 0 (none shared) to 1 (all shared).

    Not `difflib.SequenceMatcher`: on texts made for it that takes cubic time, and users choose the texts.
    """
    return 2 * len(a & b) / (len(a) + len(b))
