import json
import time

from hypothesis import given
from hypothesis import strategies as st

from constitutions.constitution import Constitution, Dimension, Principle
from constitutions.diff import Added, Change, Changed, Moved, Removed, changes_to_plain, diff
from constitutions.formats import to_plain
from tests.strategies import constitutions

ENGLISH = Principle("Answer in British English.")
SHORT = Principle("Keep answers short.")
SOURCES = Principle("Name your sources, with links.")


def of(*principles: Principle) -> Constitution:
    return Constitution(principles)


@st.composite
def versions(draw: st.DrawFn) -> tuple[Constitution, Constitution]:
    """Two versions that share most of their principles, as versions do: reordered, some edited, dropped, added."""
    a = draw(constitutions())
    pool = list(draw(st.permutations(a.principles)))
    kept = pool[: draw(st.integers(min_value=0, max_value=len(pool)))]
    edited = [
        Principle(principle.text + draw(st.sampled_from(("", " please"))), weight=draw(st.sampled_from((1.0, 2.0))))
        for principle in kept
    ]
    fresh = draw(constitutions(max_principles=3)).principles
    rows = {principle.folded: principle for principle in draw(st.permutations([*edited, *fresh]))}
    return a, Constitution(tuple(rows.values()))


def apply(a: Constitution, changes: tuple[Change, ...]) -> Constitution:
    """Carry the changes out, by what each of them is documented to mean."""
    gone = {change.old_index for change in changes if isinstance(change, Removed | Moved)}
    edited = {change.old_index: change.after for change in changes if isinstance(change, Changed)}
    staying = [edited.get(at, principle) for at, principle in enumerate(a.principles) if at not in gone]
    arriving = {change.new_index: change.principle for change in changes if isinstance(change, Added | Moved)}
    rest = iter(staying)
    return Constitution(
        tuple(arriving[at] if at in arriving else next(rest) for at in range(len(staying) + len(arriving)))
    )


@given(constitutions())
def test_nothing_differs_from_itself(constitution: Constitution) -> None:
    assert diff(constitution, constitution) == ()


@given(versions() | st.tuples(constitutions(), constitutions()))
def test_carrying_the_changes_out_gives_the_new_version(pair: tuple[Constitution, Constitution]) -> None:
    a, b = pair
    assert apply(a, diff(a, b)) == b


@given(versions())
def test_every_principle_is_accounted_for_once(pair: tuple[Constitution, Constitution]) -> None:
    a, b = pair
    changes = diff(a, b)
    removed = [change.old_index for change in changes if isinstance(change, Removed)]
    added = [change.new_index for change in changes if isinstance(change, Added)]
    assert len(a.principles) - len(removed) == len(b.principles) - len(added)
    for kind in (Added, Changed, Moved):
        places = [change.new_index for change in changes if isinstance(change, kind)]
        assert places == sorted(set(places))
    for change in changes:
        if isinstance(change, Changed):
            assert (change.before, change.after) == (a.principles[change.old_index], b.principles[change.new_index])
            assert change.changed_fields == tuple(
                name
                for name in ("text", "dimension", "weight", "note")
                if getattr(change.before, name) != getattr(change.after, name)
            )


@given(versions())
def test_principles_of_the_same_text_are_never_removed_and_added(pair: tuple[Constitution, Constitution]) -> None:
    a, b = pair
    removed = {change.principle.folded for change in diff(a, b) if isinstance(change, Removed)}
    assert not removed & {principle.folded for principle in b.principles}


def test_adding_and_removing_are_told_by_position() -> None:
    assert diff(of(ENGLISH, SHORT), of(SOURCES, SHORT)) == (Removed(0, ENGLISH), Added(0, SOURCES))


def test_one_move_is_one_change() -> None:
    assert diff(of(ENGLISH, SHORT, SOURCES), of(SOURCES, ENGLISH, SHORT)) == (Moved(2, 0, SOURCES),)


def test_shifting_by_an_addition_is_no_move() -> None:
    assert diff(of(ENGLISH, SHORT), of(SOURCES, ENGLISH, SHORT)) == (Added(0, SOURCES),)


def test_an_edited_text_is_a_change_of_the_most_similar_principle() -> None:
    edited = Principle("Keep answers very short.")
    assert diff(of(SHORT, ENGLISH), of(ENGLISH, edited)) == (
        Moved(1, 0, ENGLISH),
        Changed(0, 1, SHORT, edited, ("text",)),
    )


def test_each_attribute_is_compared() -> None:
    after = Principle(SHORT.text, Dimension.STYLE, 2, "note")
    assert diff(of(SHORT), of(after)) == (Changed(0, 0, SHORT, after, ("dimension", "weight", "note")),)


def test_another_whitespace_is_the_same_principle_changed() -> None:
    after = Principle("Keep answers\nshort.")
    assert diff(of(SHORT), of(after)) == (Changed(0, 0, SHORT, after, ("text",)),)


def test_unrelated_texts_are_no_edit_of_one_another() -> None:
    assert diff(of(SHORT), of(SOURCES)) == (Removed(0, SHORT), Added(0, SOURCES))


@given(versions())
def test_plain_changes_are_json_with_the_principles_as_formats_give_them(
    pair: tuple[Constitution, Constitution],
) -> None:
    changes = diff(*pair)
    plain = changes_to_plain(changes)
    assert json.loads(json.dumps(plain)) == plain
    assert [row["change"] for row in plain] == [type(change).__name__.lower() for change in changes]
    for row in plain:
        for key in {"principle", "before", "after"} & row.keys():
            assert row[key] in [*_rows(pair[0]), *_rows(pair[1])]


def _rows(constitution: Constitution) -> list[object]:
    rows = to_plain(constitution)["principles"]
    assert isinstance(rows, list)
    return rows


def test_plain_changes_name_both_places_and_the_fields() -> None:
    after = Principle(SHORT.text, weight=2)
    assert changes_to_plain(diff(of(SHORT, ENGLISH, SOURCES), of(SOURCES, after))) == [
        {"change": "removed", "old_index": 1, "principle": {"text": ENGLISH.text}},
        {"change": "moved", "old_index": 2, "new_index": 0, "principle": {"text": SOURCES.text}},
        {
            "change": "changed",
            "old_index": 0,
            "new_index": 1,
            "fields": ["weight"],
            "before": {"text": SHORT.text},
            "after": {"text": SHORT.text, "weight": 2.0},
        },
    ]


def test_the_largest_and_least_alike_versions_are_compared_in_bounded_time() -> None:
    def version(shift: int) -> Constitution:
        texts = ("".join(chr(0x4E00 + (n * 7919 + at * (shift + n)) % 20000) for at in range(2000)) for n in range(64))
        return of(*map(Principle, texts))

    a, b = version(1), version(101)
    started = time.perf_counter()
    diff(a, b)
    assert time.perf_counter() - started < 10
