"""Synthetic tasks: what each family asks, what passes, and which prompts are for what."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from adaptive.evaluation.families import BENCHMARK, FAMILIES, every, synthetic
from adaptive.evaluation.tasks import TaskError, load
from adaptive.evaluation.verifiers import build
from adaptive.splits import Split, split_of, text_of

SEVERAL = 60
EGGS = "Grace has 12 eggs, gets 7 more and gives 8 away."
SETS = {f"synthetic-all:{split.value}": split for split in Split}
# The first prompt of each family, a reply that does what it says, and some that do not.
FIRST: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "addition": ("Compute 5 + 6 and give the result.", "5 + 6 = 11.", ("It is 12.", "eleven", "")),
    "subtraction": (
        "What is left when I start with 251 and take away 222?",
        "You start with 251 and have 29 left.",
        ("You have 31 left.", "29 is what is left of 251."),
    ),
    "multiplication": ("What is 12 times 12?", "12 times 12 is 144.", ("12 times 12 is 124.", "144 = 12 * 12")),
    "word-problem": (
        f"{EGGS} How many eggs does Grace have now? Answer in one short sentence.",
        "Grace has 11 eggs.",
        ("Grace has 19 eggs.", "She has some."),
    ),
    "capital": (
        "What is the capital of Ukraine? Answer with the name only.",
        "It is Kyiv.",
        ("Kharkiv", "Kyivan", ""),
    ),
    "word-fact": (
        'What is the name of the young of the animal "horse"? Answer with one word.',
        "Foal",
        ("Calf", "foals"),
    ),
    "spelling": (
        'Spell the word "village" with a hyphen between the letters.',
        "V-i-l-l-a-g-e.",
        ("v-i-l-a-g-e", "village", "v i l l a g e", "v-i-l-l-a-g-e-s"),
    ),
    "numbered-list": (
        "List 4 sports, numbered, one per line.",
        "Sure:\n1. tennis\n2. golf\n\n3) chess\n4. judo\n",
        ("1. tennis\n2. golf\n3. chess", "1. a\n2. b\n3. c\n4. d\n5. e", "tennis, golf, chess, judo"),
    ),
    "comma-list": (
        "Name 2 pieces of furniture on one line, separated by commas.",
        "chair, table.",
        ("chair", "chair, table, bed", "chair\ntable"),
    ),
    "bullets": (
        'Give a bullet list of exactly 4 countries. Each line begins with "* ".',
        "* Italy\n* Peru\n* Chad\n* Iran",
        ("* Italy\n* Peru\n* Chad", "Italy, Peru, Chad, Iran"),
    ),
    "lowercase": (
        "describe cooking in a short sentence. use only lowercase letters.",
        "to cook is to warm food with care.",
        ("To cook is to warm food with care.",),
    ),
    "uppercase": (
        "USE ONLY CAPITAL LETTERS: ONE SENTENCE ABOUT eagles.",
        "THE EAGLE IS A BIRD THAT SEES VERY WELL.",
        ("The eagle is a bird.",),
    ),
    "no-comma": (
        "Describe airplanes in two sentences. Do not use commas.",
        "They fly. They are fast.",
        ("They fly, and they are fast.",),
    ),
    "forbidden": (
        'In two sentences, describe a river without saying "river" or "and".',
        "Water flows to the sea. It is sandy.",
        ("Rivers and lakes.", "The river flows.", "Water and sand."),
    ),
    "keywords": (
        "Use the words ship, camera in a single short sentence.",
        "He left his camera on the ship.",
        ("He left it on the ship.", "He left."),
    ),
    "ending": (
        "Write a sentence about sleep. End with the words: Thank you.",
        "Sleep is good. Thank you.",
        ("Sleep is good.", "Thank you. Sleep is good."),
    ),
    "few-words": (
        "Describe solar power in fewer than 15 words.",
        "The sun shines on a panel, which makes a current.",
        ("word " * 15,),
    ),
    "one-sentence": (
        "Tell me about cooking. Answer in exactly one sentence.",
        "Cooking makes food warm.",
        ("Cooking makes food warm. It is fun.",),
    ),
    "on-topic": ("Write two sentences about a robot.", "Robots are machines.", ("It is a machine.", "microrobot")),
    "no-loop": (
        "Tell me five facts about a kind teacher.",
        "She listens. She waits. She never shouts.",
        ("She is kind to all. She is kind to all.", ""),
    ),
    "json-object": (
        'Reply in JSON with "color", "kind", "age" for rainbows. No other text.',
        '```json\n{"color": "all", "kind": "arc", "age": 0}\n```',
        ('{"color": "all", "kind": "arc"}', 'Here: {"color": 1, "kind": 2, "age": 3}'),
    ),
    "quotation": (
        'Answer inside "double quotes": a hospital?',
        '"A place for the ill."',
        ("A place for the ill.", '"A place" for the ill.'),
    ),
    "constitution": (
        "What is money for? Answer in a sentence or two.",
        "It buys Lemons.",
        ("It buys bread.",),
    ),
}


def test_every_family_is_tried() -> None:
    assert set(FIRST) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reply_that_does_what_is_asked_passes_and_others_do_not(family: str) -> None:
    prompt, passing, failing = FIRST[family]
    first = synthetic(family, 1)[0]
    assert (first.id, first.prompt) == (f"{family}-1", prompt)
    verify = build(first.verifier)
    assert verify(passing).passed
    assert [reply for reply in failing if verify(reply).passed] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_a_family_are_different_and_their_verifiers_can_be_built(family: str) -> None:
    tasks = synthetic(family, SEVERAL)
    assert len(tasks) == SEVERAL
    assert len({text_of(task.messages) for task in tasks}) == SEVERAL
    assert len({task.id for task in tasks}) == SEVERAL
    for task in tasks:
        assert task.prompt == task.messages[-1]["content"]
        build(task.verifier)("a reply, of no sense\n1. at all")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_of_many_are_the_first_of_few_and_another_seed_asks_otherwise(family: str) -> None:
    tasks = synthetic(family, SEVERAL)
    assert tasks[:9] == synthetic(family, 9)
    assert tasks[:9] != synthetic(family, 9, seed=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_splits_of_a_family_share_no_prompt_whatever_the_seed(family: str) -> None:
    texts = []
    for split in Split:
        tasks = [task for seed in (0, 1) for task in synthetic(family, 20, seed=seed, splits=frozenset({split}))]
        assert len(tasks) > 30  # of bullet lists there are few
        texts.append({text_of(task.messages) for task in tasks})
    for one, other in itertools.combinations(texts, 2):
        assert one.isdisjoint(other)


def test_those_of_a_split_are_those_of_all_that_are_in_it() -> None:
    some = synthetic("addition", 300)
    tested = tuple(task for task in some if split_of(task.messages) is Split.TEST)
    assert 20 < len(tested) < 80
    assert synthetic("addition", len(tested), splits=frozenset({Split.TEST})) == tested


def test_a_family_that_has_no_more_ends() -> None:
    assert 100 < len(synthetic("bullets", 10_000)) < 200


def test_a_family_that_is_none_is_refused() -> None:
    with pytest.raises(KeyError, match="riddles"):
        synthetic("riddles", 1)


def test_only_constitutions_have_a_system_message() -> None:
    ruled = [task for task in every(20) if task.system is not None]
    assert {task.family for task in ruled} == {"constitution"}
    assert all(task.messages[0] == {"role": "system", "content": task.system} for task in ruled)
    assert len({task.system for task in ruled}) > 3


def test_families_come_in_turn() -> None:
    assert [task.family for task in every(2)] == list(FAMILIES) * 2
    short = Counter(task.family for task in every(200))
    assert short["bullets"] < short["addition"] == 200


def test_synthetic_data_sets_are_of_all_families_and_of_one_split_each() -> None:
    sets = {split: load(name) for name, split in SETS.items()}
    for split, data in sets.items():
        assert {task.family for task in data.tasks} == set(FAMILIES)
        assert {split_of(task.messages) for task in data.tasks} == {split}
        assert len({task.id for task in data.tasks}) == len(data.tasks) == len({task.digest for task in data.tasks})
        assert max(Counter(task.family for task in data.tasks).values()) == 200
        assert data.name == f"synthetic-all-{split.value}"
        assert data.about == f"{len(data.tasks)} synthetic prompts of {len(FAMILIES)} families, for {split.value}"
    first = sets[Split.TEST].tasks[0]
    assert first.messages == ({"role": "user", "content": "Compute 77 + 16 and give the result."},)
    assert (first.verify("93").passed, first.verify("94").passed) == (True, False)


def test_a_data_set_can_be_taken_by_split_and_the_benchmark_is_of_its_own_families() -> None:
    whole = load("ifeval")
    parts = [load(f"ifeval:{split.value}") for split in Split]
    assert sorted(task.id for part in parts for task in part.tasks) == sorted(task.id for task in whole.tasks)
    assert all(part.tasks for part in parts)
    assert {task.family for task in load("synthetic:test").tasks} == set(BENCHMARK)
    with pytest.raises(TaskError, match="nowhere"):
        load("nowhere:test")
