"""Synthetic tasks: short prompts of many families, each with an exact verifier, as many as are wanted, from a seed.

They cost little to sample, and they differ in what a model could know of its own reply: a sum may be right or wrong
without looking it; a comma that was not allowed is there for anybody to see. Training and test prompts are disjoint
because a prompt's own text says which of them it is (`adaptive.splits`), whatever was asked for first.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from adaptive.evaluation import word_bank as words
from adaptive.splits import Split, split_of, text_of

Described = Mapping[str, Any]
"""A verifier, described as `verifiers.build` takes it."""


_ATTEMPTS: Final = 200  # in a row without a new prompt: the family has no more


@dataclass(frozen=True, slots=True)
class SyntheticTask:
    """family, number: make its id. system: a constitution's text, None without. verifier: described."""

    family: str
    number: int
    prompt: str
    verifier: Described
    system: str | None = None

    @property
    def id(self) -> str:
        """Unique among all tasks of a seed."""
        return f"{self.family}-{self.number}"

    @property
    def messages(self) -> tuple[Mapping[str, str], ...]:
        """The chat."""
        user = {"role": "user", "content": self.prompt}
        return (user,) if self.system is None else ({"role": "system", "content": self.system}, user)


def synthetic(
    family: str, count: int, *, seed: int = 0, splits: frozenset[Split] = frozenset(Split)
) -> tuple[SyntheticTask, ...]:
    """Return that many different tasks of a family, all in those splits; fewer where the family has no more.

    Raises `KeyError` for a family that is none of `FAMILIES`.
    """
    make = FAMILIES[family]
    source = random.Random(f"{seed} {family}")  # noqa: S311 -- data, no secret
    seen: set[str] = set()
    found: list[SyntheticTask] = []
    vain = 0
    while len(found) < count and vain < _ATTEMPTS:
        prompt, verifier, system = make(source)
        task = SyntheticTask(family, len(seen) + 1, prompt, verifier, system)
        text = text_of(task.messages)
        vain += 1
        if text not in seen:
            vain = 0
            seen.add(text)
            if split_of(task.messages) in splits:
                found.append(task)
    return tuple(found)


_Made = tuple[str, Described, str | None]


def _says(answer: str) -> Described:
    """Return the verifier of an answer with something around it: a small model does not answer in one word."""
    return {"kind": "regex", "pattern": rf"(?i)\b{answer}\b"}


def _follows(*instructions: Mapping[str, Any]) -> Described:
    return {"kind": "ifeval", "instructions": list(instructions)}


def _number(answer: int) -> Described:
    return {"kind": "number", "answer": answer}


def _addition(source: random.Random) -> _Made:
    digits = source.choice((1, 2, 2, 3))
    terms = [source.randint(10 ** (digits - 1), 10**digits - 1) for _ in range(source.choice((2, 2, 3)))]
    ask = source.choice(("What is {}?", "Calculate {}.", "Compute {} and give the result."))
    return ask.format(" + ".join(map(str, terms))), _number(sum(terms)), None


def _subtraction(source: random.Random) -> _Made:
    small, large = sorted(source.sample(range(2, source.choice((20, 100, 400))), 2))
    ask = source.choice(("What is {} - {}?", "What is left when I start with {} and take away {}?"))
    return ask.format(large, small), _number(large - small), None


def _multiplication(source: random.Random) -> _Made:
    first, second = source.randint(2, 12), source.randint(2, source.choice((12, 30)))
    return f"What is {first} times {second}?", _number(first * second), None


def _word_problem(source: random.Random) -> _Made:
    who, thing = source.choice(words.PEOPLE), source.choice(words.THINGS)
    has, more = source.randint(3, 30), source.randint(2, 20)
    if source.random() < 0.5:  # noqa: PLR2004 -- one of two
        less = source.randint(1, has)
        story = f"{who} has {has} {thing}, gets {more} more and gives {less} away."
        left = has + more - less
    else:
        story, left = f"{who} has {has} {thing} and gets {more} more.", has + more
    return f"{story} How many {thing} does {who} have now? Answer in one short sentence.", _number(left), None


def _capital(source: random.Random) -> _Made:
    country, capital = source.choice([pair for pair in words.CAPITALS if pair[0] not in pair[1]])
    ask = source.choice(("What is the capital of {}?", "Name the capital city of {}.", "Which city is {}'s capital?"))
    return f"{ask.format(country)} Answer with the name only.", _says(capital), None


def _word_fact(source: random.Random) -> _Made:
    kind, pairs = source.choice(
        (
            ("the opposite of the word", words.OPPOSITES),
            ("the plural of the word", words.PLURALS),
            ("the name of the young of the animal", words.YOUNG),
        )
    )
    word, answer = source.choice(pairs)
    end = source.choice(("Answer with one word.", "One word only.", "Reply with just the word."))
    return f'What is {kind} "{word}"? {end}', _says(answer), None


def _spelling(source: random.Random) -> _Made:
    word = source.choice(words.NOUNS)
    ask = source.choice(
        ("Spell the word {} with a hyphen between the letters.", "Write {} letter by letter, joined by -.")
    )
    pattern = r"(?i)(?<![\w-])" + "-".join(word) + r"(?![\w-])"
    return ask.format(f'"{word}"'), {"kind": "regex", "pattern": pattern}, None


def _numbered_list(source: random.Random) -> _Made:
    count, what = source.randint(2, 6), source.choice(words.CATEGORIES)
    ask = source.choice(("Give a numbered list of exactly {} {}.", "List {} {}, numbered, one per line."))
    item, other = r"[ ]*\d+[.)] .*", r"(?![ ]*\d+[.)] ).*"
    pattern = rf"\A(?:{other}\n)*(?:{item}\n+){{{count - 1}}}{item}(?:\n{other})*\Z"
    return ask.format(count, what), {"kind": "regex", "pattern": pattern}, None


def _comma_list(source: random.Random) -> _Made:
    count, what = source.randint(2, 6), source.choice(words.CATEGORIES)
    pattern = rf"\A\s*(?:[A-Za-z' ]{{2,30}},){{{count - 1}}}[A-Za-z' ]{{2,30}}\.?\s*\Z"
    return f"Name {count} {what} on one line, separated by commas.", {"kind": "regex", "pattern": pattern}, None


def _bullets(source: random.Random) -> _Made:
    count, what = source.randint(2, 5), source.choice(words.CATEGORIES)
    ask = f'Give a bullet list of exactly {count} {what}. Each line begins with "* ".'
    return ask, _follows({"id": "detectable_format:number_bullet_lists", "num_bullets": count}), None


def _lowercase(source: random.Random) -> _Made:
    ask = source.choice(
        (
            "Write one sentence about {} in lowercase letters only.",
            "In all lowercase, no capital letters, write a sentence about {}.",
            "describe {} in a short sentence. use only lowercase letters.",
        )
    )
    return ask.format(source.choice(words.TOPICS)), _follows({"id": "change_case:english_lowercase"}), None


def _uppercase(source: random.Random) -> _Made:
    ask = source.choice(
        ("Write one sentence about {} in CAPITAL LETTERS only.", "USE ONLY CAPITAL LETTERS: ONE SENTENCE ABOUT {}.")
    )
    return ask.format(source.choice(words.TOPICS)), _follows({"id": "change_case:english_capital"}), None


def _no_comma(source: random.Random) -> _Made:
    ask = source.choice(
        ("Write two sentences about {} without using any comma.", "Describe {} in two sentences. Do not use commas.")
    )
    return ask.format(source.choice(words.TOPICS)), _follows({"id": "punctuation:no_comma"}), None


def _forbidden(source: random.Random) -> _Made:
    topic = source.choice(words.TOPICS)
    head = topic.split()[-1]
    others = source.sample(("the", "is", "and", "it", "of", "was"), 1)
    ask = source.choice(
        (
            'Write two sentences about {}. Do not use the words "{}".',
            'In two sentences, describe {} without saying "{}".',
        )
    )
    forbidden = [head, *others]
    verifier = _follows({"id": "keywords:forbidden_words", "forbidden_words": forbidden})
    return ask.format(topic, '" or "'.join(forbidden)), verifier, None


def _keywords(source: random.Random) -> _Made:
    chosen = source.sample(words.NOUNS, source.choice((2, 3)))
    ask = source.choice(("Write one sentence with the words {}.", "Use the words {} in a single short sentence."))
    verifier = _follows({"id": "keywords:existence", "keywords": chosen})
    return ask.format(", ".join(chosen)), verifier, None


def _ending(source: random.Random) -> _Made:
    phrase = source.choice(("That is all.", "The end.", "Thank you.", "Good night.", "Over and out."))
    ask = source.choice(
        ("Write a sentence about {}. End with the words: {}", "Say something about {}, then finish with: {}")
    )
    verifier = _follows({"id": "startend:end_checker", "end_phrase": phrase})
    return ask.format(source.choice(words.TOPICS), phrase), verifier, None


def _few_words(source: random.Random) -> _Made:
    count = source.choice((6, 8, 10, 12, 15))
    ask = source.choice(("Describe {} in fewer than {} words.", "Tell me about {} in less than {} words."))
    verifier = _follows({"id": "length_constraints:number_words", "num_words": count, "relation": "less than"})
    return ask.format(source.choice(words.TOPICS), count), verifier, None


def _one_sentence(source: random.Random) -> _Made:
    asks = (source.choice(words.QUESTIONS), f"Tell me about {source.choice(words.TOPICS)}.")
    verifier = _follows({"id": "length_constraints:number_sentences", "num_sentences": 2, "relation": "less than"})
    return f"{source.choice(asks)} Answer in exactly one sentence.", verifier, None


def _on_topic(source: random.Random) -> _Made:
    topic = source.choice(words.TOPICS)
    ask = source.choice(
        ("Tell me about {} in one or two sentences.", "Write two sentences about {}.", "Explain {} briefly.")
    )
    head = topic.split()[-1].rstrip("s").lower()
    return ask.format(topic), {"kind": "regex", "pattern": rf"(?i)\b{head}"}, None


def _no_loop(source: random.Random) -> _Made:
    ask = source.choice(("Tell me five facts about {}.", "Write a short story about {}.", "Write a poem about {}."))
    return ask.format(source.choice(words.TOPICS)), {"kind": "no_repetition", "words": 4}, None


def _json_object(source: random.Random) -> _Made:
    keys = source.sample(("name", "age", "color", "size", "price", "city", "year", "kind"), source.choice((2, 3)))
    ask = source.choice(
        ("Give only a JSON object with the keys {} that describes {}.", "Reply in JSON with {} for {}. No other text.")
    )
    quoted = ", ".join(f'"{key}"' for key in keys)
    return ask.format(quoted, source.choice(words.TOPICS)), {"kind": "json", "keys": keys}, None


def _quotation(source: random.Random) -> _Made:
    ask = source.choice(
        (
            "Write a sentence about {}. Put your whole answer in double quotation marks.",
            'Answer inside "double quotes": {}?',
        )
    )
    return ask.format(source.choice(words.TOPICS)), _follows({"id": "startend:quotation"}), None


_CONSTITUTIONS: Final[tuple[tuple[str, Described], ...]] = (
    ("Always mention lemons in your answer.", {"kind": "regex", "pattern": r"(?i)lemon"}),
    ("Answer with one short sentence and nothing more.", {"kind": "regex", "pattern": r"\A[^.!?\n]{5,120}[.!?]?\s*\Z"}),
    ("Never use the word 'you' or 'your'.", {"kind": "regex", "pattern": r"(?is)\A(?!.*\byour?\b).+"}),
    ("Begin every answer with the word 'Certainly'.", {"kind": "regex", "pattern": r"\A\s*Certainly"}),
    ("Write in lowercase letters only.", {"kind": "regex", "pattern": r"(?s)\A[^A-Z]+\Z"}),
    ("Always answer with a question.", {"kind": "regex", "pattern": r"\?\s*\Z"}),
    ("Do not use lists or line breaks.", {"kind": "regex", "pattern": r"\A[^\n]+\Z"}),
    ("Speak like a pirate and say 'Arr'.", {"kind": "regex", "pattern": r"(?i)\barr+\b"}),
    ("End every answer with the words: Be kind.", {"kind": "regex", "pattern": r"(?i)be kind[.!]?\s*\Z"}),
    ("Do not use any comma.", {"kind": "regex", "pattern": r"(?s)\A[^,]+\Z"}),
)


def _constitution(source: random.Random) -> _Made:
    system, verifier = source.choice(_CONSTITUTIONS)
    ending = source.choice(("", " Be brief.", " Answer in a sentence or two."))
    return source.choice(words.QUESTIONS) + ending, verifier, system


FAMILIES: Final[Mapping[str, Callable[[random.Random], _Made]]] = {
    "addition": _addition,
    "subtraction": _subtraction,
    "multiplication": _multiplication,
    "word-problem": _word_problem,
    "capital": _capital,
    "word-fact": _word_fact,
    "spelling": _spelling,
    "numbered-list": _numbered_list,
    "comma-list": _comma_list,
    "bullets": _bullets,
    "lowercase": _lowercase,
    "uppercase": _uppercase,
    "no-comma": _no_comma,
    "forbidden": _forbidden,
    "keywords": _keywords,
    "ending": _ending,
    "few-words": _few_words,
    "one-sentence": _one_sentence,
    "on-topic": _on_topic,
    "no-loop": _no_loop,
    "json-object": _json_object,
    "quotation": _quotation,
    "constitution": _constitution,
}
"""Name of a family to what makes one task of it: prompt, verifier, system message."""


BENCHMARK: Final = (
    "numbered-list",
    "no-loop",
    "few-words",
    "keywords",
    "forbidden",
    "ending",
    "no-comma",
    "multiplication",
    "bullets",
    "json-object",
    "capital",
)
"""The families with something to gain: on training prompts, with SmolLM2-135M, the best of eight answers passes at
least 0.3 more often than one does. Chosen by that alone, before any scorer was trained: see the model card."""


def every(
    count: int,
    *,
    families: Sequence[str] = tuple(FAMILIES),
    seed: int = 0,
    splits: frozenset[Split] = frozenset(Split),
) -> Iterator[SyntheticTask]:
    """Yield that many tasks of each family, one of each family in turn."""
    by_family = [synthetic(family, count, seed=seed, splits=splits) for family in families]
    for place in range(count):
        yield from (tasks[place] for tasks in by_family if place < len(tasks))
