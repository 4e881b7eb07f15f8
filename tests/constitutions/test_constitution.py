import pytest

from constitutions.constitution import MAX_NOTE_CHARS, Constitution, ConstitutionError, Limits, Principle


def of(*texts: str) -> Constitution:
    return Constitution(tuple(Principle(text) for text in texts))


def test_text_and_note_are_stripped_and_line_breaks_are_line_feeds() -> None:
    principle = Principle("  Be kind.\r\nAlways. \n", note=" why \r\n")
    assert (principle.text, principle.note) == ("Be kind.\nAlways.", "why")


def test_an_empty_note_is_no_note() -> None:
    assert Principle("Be kind.", note=" \n") == Principle("Be kind.")


@pytest.mark.parametrize("text", ["", "  \n\t", "\u200b", "\u2028 \ufeff"])
def test_a_text_that_shows_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConstitutionError, match="text is empty: write the principle"):
        Principle(text)


@pytest.mark.parametrize("char", ["\x00", "\x07", "\x0b", "\r", "\x1b", "\x7f", "\x85", "\x9f", "\ud800"])
@pytest.mark.parametrize("field", ["text", "note"])
def test_a_control_character_is_refused_by_name_and_position(field: str, char: str) -> None:
    with pytest.raises(ConstitutionError) as caught:
        Principle(text=f"ab{char}c") if field == "text" else Principle("fine", note=f"ab{char}c")
    assert caught.value.path == field
    assert f"U+{ord(char):04X} at position 2" in caught.value.message


def test_tabs_line_breaks_and_joiners_are_allowed() -> None:
    assert Principle("a\tb\nc \U0001f469\u200d\U0001f52c").text == "a\tb\nc \U0001f469\u200d\U0001f52c"


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf"), -0.001])
def test_a_weight_is_finite_and_not_negative(weight: float) -> None:
    with pytest.raises(ConstitutionError, match="give a number that is 0 or more"):
        Principle("Be kind.", weight=weight)


def test_there_is_one_weight_of_zero() -> None:
    assert str(Principle("Be kind.", weight=-0.0).weight) == "0.0"


def test_a_note_has_a_longest_length() -> None:
    assert Principle("Be kind.", note="x" * MAX_NOTE_CHARS).note == "x" * MAX_NOTE_CHARS
    with pytest.raises(ConstitutionError, match=f"note has {MAX_NOTE_CHARS + 1} characters"):
        Principle("Be kind.", note="x" * (MAX_NOTE_CHARS + 1))


def test_no_principles_is_an_error_that_names_delete() -> None:
    with pytest.raises(ConstitutionError, match="use DELETE") as caught:
        Constitution(())
    assert caught.value.path == "principles"


def test_the_same_principle_twice_is_an_error_naming_both() -> None:
    with pytest.raises(ConstitutionError, match=r"principles\[2\]\.text is the same as principles\[0\]\.text"):
        of("Be kind.", "Be brief.", " Be \n kind. ")


def test_limits_count_characters_and_not_bytes() -> None:
    limits = Limits(max_principles=2, max_principle_chars=3, max_chars=6)
    assert of("äöü", "漢字漢").within(limits).chars == 6


@pytest.mark.parametrize(
    ("texts", "path", "said"),
    [
        (("a", "b", "c"), "principles", "more than 2 entries"),
        (("a", "abcd"), "principles[1].text", "has 4 characters, and a principle has at most 3"),
        (("abc", "def"), "principles", "has 6 characters in all, and a constitution has at most 5"),
    ],
)
def test_each_limit_has_its_own_error(texts: tuple[str, ...], path: str, said: str) -> None:
    with pytest.raises(ConstitutionError) as caught:
        of(*texts).within(Limits(max_principles=2, max_principle_chars=3, max_chars=5))
    assert caught.value.path == path
    assert said in caught.value.message


def test_a_message_is_a_sentence_whose_subject_is_the_path() -> None:
    error = ConstitutionError("text", "is empty: write it").inside("principles[3]")
    assert (error.path, error.message) == ("principles[3].text", "principles[3].text is empty: write it")
    assert str(ConstitutionError("", "is empty: write it")) == "the constitution is empty: write it"
