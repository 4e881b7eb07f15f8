import time

import pytest

from constitutions.constitution import Constitution, ConstitutionError, Dimension, Limits, Principle
from constitutions.formats import parse, render


def read(body: str) -> Constitution:
    return parse("application/yaml", body.encode(), Limits())


def test_hand_written_yaml_is_read() -> None:
    body = """
    # mine
    principles:
      - Answer in British English.
      - text: |
          Keep it short
          unless I ask.
        dimension: style
        weight: 2
    """
    assert read(body) == Constitution(
        (Principle("Answer in British English."), Principle("Keep it short\nunless I ask.", Dimension.STYLE, 2))
    )


def test_a_text_of_several_lines_is_written_as_a_block() -> None:
    assert render("application/yaml", Constitution((Principle("Grüße:\n- eins"),))).decode() == (
        "principles:\n- text: |-\n    Grüße:\n    - eins\n"
    )


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("- &a x\n- *a", "on line 1 a YAML anchor or alias"),
        ("- x\n- *a", "on line 2 a YAML anchor or alias"),
        ("&a {principles: [x]}", "anchor or alias"),
        ("- !!python/object/apply:os.system [x]", "on line 1 a YAML tag"),
        ("- !!str 3", "a YAML tag"),
        ("- text: a\n  3: b", "on line 2 a key that is not a string"),
        ("- text: a\n  [a]: b", "a key that is not a string"),
        ("- text: a\n  <<: {note: b}", "a key that is not a string"),
        ("- text: a\n  text: b", "on line 2 the key 'text' again"),
        ("[" * 50, "nested too deeply on line 1"),
        ("a: b: c", "line 1, column 5"),
        ("- a\n--- b", "line 2"),
        ("- 2024-13-45", "Put it in quotes"),
        ("- 2024-01-02", "is a date: give the text as a string, in quotes"),
        ("- yes", "is a boolean: give the text as a string, in quotes"),
        ("- =", "line 1, column 3"),
        ('- "\\uD800"', "not valid YAML"),
        ("- \x00", "not valid YAML"),
        ("", "is null"),
        ("just words", "is a string"),
        ("- " + "a\n- " * 5000, "more entries than a constitution may have"),
    ],
)
def test_what_is_more_or_less_than_plain_values_is_refused(body: str, said: str) -> None:
    with pytest.raises(ConstitutionError) as caught:
        read(body)
    assert said in caught.value.message


def test_an_alias_bomb_is_refused_at_its_first_anchor() -> None:
    lines = ["a: &a [x,x,x,x,x,x,x,x,x]"]
    lines += [f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
    started = time.perf_counter()
    with pytest.raises(ConstitutionError, match="on line 1 a YAML anchor"):
        read("\n".join(lines))
    assert time.perf_counter() - started < 1
