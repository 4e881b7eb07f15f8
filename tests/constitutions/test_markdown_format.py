import pytest

from constitutions.constitution import Constitution, ConstitutionError, Dimension, Limits, Principle
from constitutions.formats import parse, render


def read(body: str) -> Constitution:
    return parse("text/markdown", body.encode(), Limits())


def texts(body: str) -> list[str]:
    return [principle.text for principle in read(body).principles]


def test_it_is_written_as_a_numbered_list_under_a_heading() -> None:
    constitution = Constitution(
        (
            Principle("Answer in British English."),
            Principle("Keep it short\n\nunless I ask.", Dimension.STYLE, 2, "long answers\ntire me"),
            Principle("Lists:\n- weight: in kilograms", weight=0, note='"quoted"'),
        )
    )
    assert render("text/markdown", constitution).decode() == (
        "# Constitution\n"
        "\n"
        "1. Answer in British English.\n"
        "2. Keep it short\n"
        "\n"
        "   unless I ask.\n"
        "   - dimension: style\n"
        "   - weight: 2\n"
        '   - note: "long answers\\ntire me"\n'
        "3. Lists:\n"
        "   \\- weight: in kilograms\n"
        "   - weight: 0\n"
        '   - note: "\\"quoted\\""\n'
    )


@pytest.mark.parametrize(
    "markers", [("-", "-"), ("*", "*"), ("+", "+"), ("1.", "2."), ("1)", "2)"), ("7.", "7."), ("-", "1.")]
)
def test_any_list_marker_begins_a_principle(markers: tuple[str, str]) -> None:
    assert texts(f"{markers[0]} Be kind.\n{markers[1]}   Be brief.\n") == ["Be kind.", "Be brief."]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("# Mine\n\n## Style\n- a\n\n## Facts\n\n- b", ["a", "b"]),
        ("- a\n  b\n- c", ["a\nb", "c"]),
        ("- a\nb\n- c", ["a\nb", "c"]),
        ("- a\n\n  b\n\n- c", ["a\n\nb", "c"]),
        ("10. a\n  b", ["a\nb"]),
        ("1. a\n\tb", ["a\nb"]),
        ("1.\n   a", ["a"]),
        ("1.      a", ["a"]),
        ("  - a\n  - b", ["a", "b"]),
        ("- a\n  - nested\n    deeper", ["a\n- nested\n  deeper"]),
        ("- a\r\n  b\r\n- c\r\n", ["a\nb", "c"]),
        ("- #hash\n- # not a heading", ["#hash", "# not a heading"]),
        ("- a\n  \\- weight: 3", ["a\n- weight: 3"]),
        ("- a\n  \\\\- weight: 3", ["a\n\\- weight: 3"]),
        ("- a\n  \\- other", ["a\n\\- other"]),
    ],
)
def test_hand_written_lists_are_read(body: str, expected: list[str]) -> None:
    assert texts(body) == expected


@pytest.mark.parametrize(
    "attributes",
    [
        "   - dimension: style\n   - weight: 0.5\n   - note: why",
        "    * Weight : 0.5\n    * Note: why\n    * Dimension: style",
        '\n  - dimension:style\n\n  - weight: 0.5\n  - note: "why"\n',
        "\t- dimension: style\n\t- weight: 5e-1\n\t- note: why",
    ],
)
def test_attributes_are_nested_entries_in_any_order(attributes: str) -> None:
    assert read(f"1. Be brief.\n{attributes}") == Constitution((Principle("Be brief.", Dimension.STYLE, 0.5, "why"),))


def test_a_note_that_only_begins_with_a_quote_is_literal() -> None:
    assert read('- a\n  - note: "Brevity" is the soul').principles[0].note == '"Brevity" is the soul'


@pytest.mark.parametrize(
    ("body", "path", "said"),
    [
        ("Just words.", "", "on line 1 'Just words.', which belongs to no principle"),
        ("# Mine\n\n  words", "", "on line 3"),
        ("- a\n\nwords", "", "on line 3 'words'"),
        ("- a\n  - weight: 2\n  words", "", "on line 3 'words' after the attributes"),
        ("- a\n  - weight: 2\n  - wieght: 3", "", "on line 3 '- wieght: 3' after the attributes"),
        ("- a\n  - weight: 2\n  - weight: 2", "", "on line 3 a second weight"),
        ("- a\n  - weight: heavy", "principles[0].weight", "is a string: give a number"),
        ("- a\n  - weight: nan", "principles[0].weight", "0 or more"),
        ("- a\n- b\n  - dimension: stile", "principles[1].dimension", "did you mean 'style'?"),
        ("- a\n  - dimension: ", "principles[0].dimension", "give one of"),
        ("- a\n  - note: 3\n-\n", "principles[1].text", "is empty"),
        ("# Mine\n", "principles", "is empty"),
        ("- a\n" * 1000, "principles", "more than 64"),
    ],
)
def test_what_cannot_be_read_is_named_by_its_line_or_path(body: str, path: str, said: str) -> None:
    with pytest.raises(ConstitutionError) as caught:
        read(body)
    assert caught.value.path == path
    assert said in caught.value.message
