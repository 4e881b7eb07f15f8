import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from constitutions.constitution import Constitution, ConstitutionError, Dimension, Limits, Principle
from constitutions.formats import (
    SUPPORTED,
    UnknownMediaType,
    from_plain,
    parse,
    render,
    select_media_type,
    to_plain,
)
from tests.strategies import constitutions

LIMITS = Limits()
FULL = Principle("Keep it short.", Dimension.STYLE, 2.5, "because")


def read(media_type: str, body: str) -> Constitution:
    return parse(media_type, body.encode(), LIMITS)


@pytest.mark.parametrize("media_type", SUPPORTED)
@given(constitution=constitutions())
@example(Constitution((Principle("a\n- weight: 2\n\\- weight: 3\n\n \n\tb", weight=5e-324, note='"x'),)))
@example(Constitution((Principle("\ufeff1. a\n2. b\n# c"), Principle("- x\n  \n  y", note='"'), Principle("\ufffe"))))
def test_what_is_written_in_a_format_reads_back_equal(media_type: str, constitution: Constitution) -> None:
    assert parse(media_type, render(media_type, constitution), LIMITS) == constitution


@given(constitutions())
def test_plain_values_read_back_equal(constitution: Constitution) -> None:
    assert from_plain(to_plain(constitution)) == constitution


@pytest.mark.parametrize("media_type", SUPPORTED)
@given(body=st.binary(max_size=60) | st.text(alphabet="-#1.)[]{}:&*!|>\"' \n\tabtext", max_size=60).map(str.encode))
def test_any_bytes_give_a_constitution_or_a_constitution_error(media_type: str, body: bytes) -> None:
    try:
        constitution = parse(media_type, body, LIMITS)
    except ConstitutionError as error:
        assert error.message  # noqa: PT017 - both outcomes are right, and only this one has a message
    else:
        assert constitution.principles


def test_plain_values_leave_defaults_out() -> None:
    assert to_plain(Constitution((Principle("a"), FULL))) == {
        "principles": [
            {"text": "a"},
            {"text": "Keep it short.", "dimension": "style", "weight": 2.5, "note": "because"},
        ]
    }


@pytest.mark.parametrize("value", [["a", {"text": "b"}], {"principles": ["a", {"text": "b", "note": None}]}])
def test_a_principle_may_be_its_text_and_a_constitution_the_list(value: object) -> None:
    assert from_plain(value) == Constitution((Principle("a"), Principle("b")))


def test_without_limits_any_size_is_read() -> None:
    assert len(from_plain([f"principle {number}" for number in range(1000)]).principles) == 1000


@pytest.mark.parametrize(
    ("value", "path", "said"),
    [
        (None, "", "is null"),
        ("text", "", "is a string"),
        ({}, "principles", "is missing"),
        ({"principles": "a"}, "principles", "is a string: give a list"),
        ({"principle": []}, "", "did you mean 'principles'?"),
        ([], "principles", "is empty"),
        ([1], "principles[0]", "is a number"),
        ([{}], "principles[0].text", "is missing"),
        (["a", {"text": 3}], "principles[1].text", "is a number: give a string"),
        (["a", {"text": " "}], "principles[1].text", "is empty"),
        ([{"text": "a", "wieght": 1}], "principles[0]", "did you mean 'weight'?"),
        ([{"text": "a", "weight": "1"}], "principles[0].weight", "is a string"),
        ([{"text": "a", "weight": True}], "principles[0].weight", "is a boolean"),
        ([{"text": "a", "weight": None}], "principles[0].weight", "is null"),
        ([{"text": "a", "weight": 10**400}], "principles[0].weight", "too large"),
        ([{"text": "a", "weight": -1}], "principles[0].weight", "0 or more"),
        ([{"text": "a", "dimension": "stile"}], "principles[0].dimension", "did you mean 'style'?"),
        ([{"text": "a", "dimension": 3}], "principles[0].dimension", "is a number"),
        ([{"text": "a", "note": ["x"]}], "principles[0].note", "is a list"),
        (["a"] * 65, "principles", "more than 64"),
    ],
)
def test_a_wrong_value_is_named_with_its_remedy(value: object, path: str, said: str) -> None:
    with pytest.raises(ConstitutionError) as caught:
        from_plain(value, LIMITS)
    assert caught.value.path == path
    assert said in caught.value.message


def test_a_long_unknown_key_is_quoted_shortened() -> None:
    with pytest.raises(ConstitutionError) as caught:
        from_plain({"k" * 100_000: 1})
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "line 1, column 1"),
        ('["a",\n}', "line 2, column 1"),
        ('{"principles": ["a"], "principles": ["b"]}', "key 'principles' twice"),
        ('[{"text": "a", "weight": NaN}]', "0 or more"),
        ('[{"text": "a", "weight": 1e999}]', "0 or more"),
        (f'[{{"text": "a", "weight": {"9" * 5000}}}]', "too many digits"),
        ('["\\ud800"]', "U+D800"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_json_errors_say_where_and_what(body: str, said: str) -> None:
    with pytest.raises(ConstitutionError) as caught:
        read("application/json", body)
    assert said in caught.value.message


def test_a_body_over_the_largest_useful_size_is_refused_unread() -> None:
    limits = Limits(max_principles=1, max_principle_chars=10, max_chars=10)
    with pytest.raises(ConstitutionError, match=f"needs more than {limits.max_body_bytes}"):
        parse("application/json", b"\xff" * (limits.max_body_bytes + 1), limits)


def test_the_largest_constitution_fits_the_largest_body_in_its_longest_spelling() -> None:
    rows = [
        {"text": chr(0x1F600 + n) * 250, "note": "\U0001f600" * 2000, "dimension": "background_knowledge"}
        for n in range(64)
    ]
    body = json.dumps({"principles": rows}, ensure_ascii=True, indent=8).encode()
    assert parse("application/json", body, LIMITS).chars == LIMITS.max_chars


@pytest.mark.parametrize("media_type", SUPPORTED)
def test_a_body_that_is_not_utf_8_is_refused_with_the_offset(media_type: str) -> None:
    with pytest.raises(ConstitutionError, match="byte 0xFC at offset 4"):
        parse(media_type, b'- "B\xfccher"', LIMITS)


@pytest.mark.parametrize(
    ("media_type", "body"), [("application/json", '["a"]'), ("text/yaml", "- a"), ("text/markdown", "- a")]
)
def test_a_byte_order_mark_before_the_body_is_skipped(media_type: str, body: str) -> None:
    assert read(media_type, "\ufeff" + body) == Constitution((Principle("a"),))


@pytest.mark.parametrize(
    ("media_type", "body"),
    [
        ("application/json", '["a"]'),
        ("Application/JSON; charset=UTF-8", '["a"]'),
        ('text/json;charset="utf-8"', '["a"]'),
        ("application/vnd.example+json", '["a"]'),
        ("application/yaml", "- a"),
        ("application/x-yaml", "- a"),
        ("text/yaml; charset=utf-8", "- a"),
        ("text/x-yaml", "- a"),
        ("application/vnd.example+yaml", "- a"),
        ("text/markdown; charset=utf-8; variant=CommonMark", "- a"),
        ("text/x-markdown", "- a"),
    ],
)
def test_every_name_of_a_format_is_read(media_type: str, body: str) -> None:
    assert read(media_type, body) == Constitution((Principle("a"),))


@pytest.mark.parametrize(
    ("media_type", "said"),
    [
        ("", "there is no media type"),
        ("text/plain", "'text/plain' is not supported: use one of application/json"),
        ("application/x-www-form-urlencoded", "is not supported"),
        ("application/json; charset=latin-1", "send the constitution as UTF-8"),
    ],
)
def test_other_media_types_are_refused_with_those_that_work(media_type: str, said: str) -> None:
    with pytest.raises(UnknownMediaType, match=said):
        read(media_type, '["a"]')
    with pytest.raises(UnknownMediaType, match=said):
        render(media_type, Constitution((FULL,)))


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "application/json"),
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("text/*", "text/markdown"),
        ("text/yaml", "text/yaml"),
        ("Application/YAML", "application/yaml"),
        ("text/markdown, application/json", "application/json"),
        ("application/json;q=0.5, text/markdown", "text/markdown"),
        ("application/json; q=0.1, application/yaml; q=0.2, */*; q=0", "application/yaml"),
        ("application/json;q=0, */*", "application/yaml"),
        ("text/html, application/xhtml+xml, */*;q=0.8", "application/json"),
        ("application/json;charset=utf-8", "application/json"),
        ("text/html", None),
        ("application/json;q=0", None),
        ("application/json;q=nonsense", None),
        ("application/json;q=nan", None),
        (",;,", None),
    ],
)
def test_the_accept_header_chooses_the_format(accept: str | None, expected: str | None) -> None:
    assert select_media_type(accept) == expected


@given(st.text(max_size=40))
def test_any_accept_header_gives_a_type_that_can_be_written_or_none(accept: str) -> None:
    chosen = select_media_type(accept)
    assert chosen is None or render(chosen, Constitution((FULL,)))
