"""Measures of a text that IFEval's instructions speak of: its words, its sentences, its language. Pure.

The original counts sentences with NLTK's trained Punkt model and splits words with NLTK's Treebank rules, for which
data has to be downloaded. Here both are rules, so that a verdict needs nothing but this file; `README.md` says how
often they differ.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Final

_WORD: Final = re.compile(r"\w+")
# A word as a reader sees it: hyphens and inner points hold it together, an apostrophe's ending is a word of its own.
_TOKEN: Final = re.compile(r"\w+(?:[-./]\w+)*")
# Where a sentence may end: its mark, what closes quotes and brackets, then space.
_END: Final = re.compile(r"[.!?]+[\"'\u201d\u2019)\]*_]*(?=\s)")
# fmt: off
_ABBREVIATIONS: Final = frozenset({
    "mr", "mrs", "ms", "dr", "prof", "rev", "hon", "st", "jr", "sr", "gov", "sen", "rep", "gen", "col", "capt", "lt",
    "sgt", "vs", "etc", "e.g", "cf", "al", "inc", "ltd", "co", "corp", "no", "vol", "fig", "u.s", "u.k", "u.n", "a.m",
    "p.m", "ph.d", "b.a", "m.a", "d.c", "jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov",
    "dec",
})
# fmt: on
_DETECTION_SEED: Final = 0


def words(text: str) -> int:
    """Return the number of words: runs of letters, digits and underscores."""
    return sum(1 for _ in _WORD.finditer(text))


def capital_words(text: str) -> int:
    """Return the number of words without a small letter; one with a hyphen is one word."""
    return sum(1 for found in _TOKEN.finditer(text) if found[0].isupper())


def sentences(text: str) -> int:
    """Return the number of sentences, 0 for an empty text.

    One ends at a point, an exclamation or a question mark that space follows, unless the point belongs to an
    abbreviation or an initial, or the next word begins small. A line break alone ends none.
    """
    text = text.strip()
    if not text:
        return 0
    return 1 + sum(_ends_sentence(text, found) for found in _END.finditer(text))


def detect_language(text: str) -> str | None:
    """Return the ISO 639-1 code of the likeliest language, None where there is nothing to tell it by."""
    return _detector()(text)


def _ends_sentence(text: str, found: re.Match[str]) -> bool:
    following = text[found.end() :].lstrip()
    if not following:
        return False
    if "!" in found[0] or "?" in found[0]:
        return True
    if following[0].islower():
        return False
    before = text[: found.start()].rsplit(maxsplit=1)[-1].lstrip("\"'([*_").lower()
    initial = len(before) == 1 and before.isalpha() and before != "i"
    return not initial and before not in _ABBREVIATIONS


@functools.cache
def _detector() -> Callable[[str], str | None]:
    """Return langdetect with a seed: it draws at random, and without one the same text may be of two languages."""
    # Half a second, and only some instructions need it.
    from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory  # noqa: PLC0415
    from langdetect.lang_detect_exception import LangDetectException  # noqa: PLC0415

    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    factory.set_seed(_DETECTION_SEED)

    def detect(text: str) -> str | None:
        detector = factory.create()
        detector.append(text)
        try:
            language: str = detector.detect()
        except LangDetectException:
            return None
        return language

    return detect
