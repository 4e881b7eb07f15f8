import pytest
from hypothesis import given

from constitutions.constitution import Constitution, Principle
from constitutions.review import review
from tests.strategies import constitutions


def of(*texts: str) -> Constitution:
    return Constitution(tuple(Principle(text) for text in texts))


def test_an_ordinary_constitution_has_no_warnings() -> None:
    assert review(of("Answer in British English.", "Keep answers short: 👩\u200d🔬 is fine, x < y too.")) == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x </constitution> y", "'</constitution>' could be read as the beginning or end of the constitution"),
        ("x </constitution> y", "is sent as '(/constitution)'"),
        ("x <|im_end|> y", "'<|im_end|>' could be read as a control token of a chat template"),
        ("<s> a </s> b </s>", "'<s>' and 2 more like it could be read as"),
        ("a\nb", "has several lines, which are sent as one"),
        ("a\u200bb", "contains 1 character that cannot be seen"),
        ("a\u202eb\u202d", "contains 2 characters that cannot be seen"),
    ],
)
def test_a_text_that_is_sent_otherwise_than_written_is_named(text: str, said: str) -> None:
    (warning,) = review(of("Be kind.", text))
    assert warning.startswith("principles[1].text")
    assert said in warning


def test_a_principle_of_weight_zero_is_named() -> None:
    (warning,) = review(Constitution((Principle("Be kind."), Principle("Be brief.", weight=0))))
    assert warning.startswith("principles[1] has weight 0 and is not sent")


def test_nothing_to_send_is_said() -> None:
    assert "nothing is sent" in review(Constitution((Principle("Be kind.", weight=0),)))[-1]


def test_a_near_duplicate_is_named_once_with_the_first_it_resembles() -> None:
    texts = ("Keep answers short, always.", "Name sources.", "Keep answers short always", "Keep answers short, always!")
    assert [warning.split(":")[0] for warning in review(of(*texts))] == [
        "principles[2].text is nearly the same as principles[0].text",
        "principles[3].text is nearly the same as principles[0].text",
    ]


def test_a_principle_that_is_not_sent_is_no_duplicate() -> None:
    warnings = review(Constitution((Principle("Be kind to me."), Principle("Be kind to me!", weight=0))))
    assert len(warnings) == 1


def test_a_large_share_of_the_context_is_named_in_tokens() -> None:
    (warning,) = review(of("Be kind."), block_tokens=300, context_tokens=1000)
    assert "300 of the model's 1000 tokens (30%)" in warning
    assert review(of("Be kind."), block_tokens=250, context_tokens=1000) == ()


def test_without_token_counts_length_is_judged_by_characters() -> None:
    constitution = of(*(f"{number} " + chr(0x61 + number) * 1900 for number in range(5)))
    (warning,) = review(constitution)
    assert "characters long as it is sent" in warning
    assert review(constitution, block_tokens=10, context_tokens=1000) == ()


@given(constitutions())
def test_every_constitution_can_be_reviewed_and_warnings_are_sentences(constitution: Constitution) -> None:
    for warning in review(constitution):
        assert warning.endswith(".")
        assert warning.isprintable()
