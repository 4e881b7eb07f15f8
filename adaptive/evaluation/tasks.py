"""Data sets of tasks: a prompt and the verifier of its replies.

Two come with the package, three are made up of synthetic families, one for each split, and others are JSONL files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from adaptive.evaluation import families
from adaptive.evaluation.verifiers import Verifier, VerifierError, build
from adaptive.splits import Split, split_of

_FIELDS: Final = frozenset({"family", "id", "messages", "prompt", "verifier"})
_GSM8K_REQUEST: Final = "Reason step by step. End with a line of four number signs and the answer: #### <number>"


class TaskError(ValueError):
    """A data set that cannot be used. The message names the file, the line, the field and the remedy."""


@dataclass(frozen=True, slots=True)
class Task:
    """One prompt.

    id: unique in its data set. messages: of the chat, as the API takes them. verify: judges a reply. family: the kind
    of task, for tables that tell kinds apart; "" where the data set has one kind.
    """

    id: str
    messages: tuple[Mapping[str, Any], ...]
    verify: Verifier
    family: str = ""

    @property
    def digest(self) -> str:
        """What tells this prompt from any other, in 32 hexadecimal digits."""
        text = json.dumps(self.messages, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class DataSet:
    """name: short, for file names. about: what it is and where it is from, for the report."""

    name: str
    tasks: tuple[Task, ...]
    about: str


def load(name_or_path: str) -> DataSet:
    """Return the data set of that name, or the one in a JSONL file. Raises `TaskError`.

    `NAME:test` (or `:calibration`, `:train`) is those of its prompts that are for that, by the hash of their text.
    A file has one object a line: `id` (or the line's number), `prompt` (a text) or `messages` (of a chat), `verifier`,
    and `family` where kinds of prompts are to be told apart.
    """
    name, _, split = name_or_path.rpartition(":")
    if name and split in set(Split):
        return _of_split(name, Split(split))
    if name_or_path in _SYNTHETIC:
        return _synthetic(name_or_path, frozenset(Split))
    bundled = _BUNDLED.get(name_or_path)
    if bundled is not None:
        about, read = bundled
        text = (resources.files("adaptive.evaluation") / "data" / f"{name_or_path}.jsonl").read_text(encoding="utf-8")
        return DataSet(name_or_path, _tasks(text, f"{name_or_path}.jsonl", read), about)
    path = Path(name_or_path)
    if not path.is_file():
        raise TaskError(f"{name_or_path} is neither a file nor one of {', '.join(sorted({*_BUNDLED, *_SYNTHETIC}))}.")
    return DataSet(path.stem, _tasks(read_text(path), str(path), _own_row), f"the file {path.name}")


def _of_split(name: str, split: Split) -> DataSet:
    if name in _SYNTHETIC:
        return _synthetic(name, frozenset({split}))
    whole = load(name)
    tasks = tuple(task for task in whole.tasks if split_of(task.messages) is split)
    return DataSet(f"{whole.name}-{split.value}", tasks, f"{len(tasks)} of {whole.about}: those for {split.value}")


def _synthetic(name: str, splits: frozenset[Split]) -> DataSet:
    chosen = _SYNTHETIC[name]
    tasks = tuple(
        Task(each.id, each.messages, build(each.verifier), each.family)
        for each in families.every(_SYNTHETIC_EACH, families=chosen, splits=splits)
    )
    only = "" if splits == frozenset(Split) else f"-{'-'.join(sorted(splits))}"
    about = f"{len(tasks)} synthetic prompts of {len(chosen)} families"
    return DataSet(name + only, tasks, about + (f", for {only[1:]}" if only else ""))


def _tasks(text: str, source: str, read: Callable[[Mapping[str, Any], int], Task]) -> tuple[Task, ...]:
    tasks: dict[str, Task] = {}
    for number, where, row in rows(text, source):
        try:
            task = read(row, number)
        except VerifierError as error:
            raise TaskError(f"{where}: {error}.") from error
        if task.id in tasks:
            raise TaskError(f"{where}: id {task.id!r} is there already; give every line its own.")
        tasks[task.id] = task
    if not tasks:
        raise TaskError(f"{source} has no tasks.")
    return tuple(tasks.values())


def read_text(path: Path) -> str:
    """Return what a file says. Raises `TaskError`."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path} cannot be read: {error}") from error


def rows(text: str, source: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield the objects of JSON lines that are not empty: the line's number, where that is, and the object.

    source: what the text is called in errors. By line feeds only: texts hold other separators. Raises `TaskError`.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise TaskError(f"{where}: is no JSON ({error}).") from error
        if not isinstance(row, dict):
            raise TaskError(f"{where}: is no object.")
        yield number, where, row


def _own_row(row: Mapping[str, Any], number: int) -> Task:
    for name in row:
        if name not in _FIELDS:
            raise VerifierError(name, f"is unknown; a line has {', '.join(sorted(_FIELDS))}")
    own_id = row.get("id", number)
    if not isinstance(own_id, str | int) or isinstance(own_id, bool):
        raise VerifierError("id", "is neither a text nor a whole number")
    if ("prompt" in row) == ("messages" in row):
        raise VerifierError("prompt", "or messages must be there, and not both")
    family = row.get("family", "")
    if not isinstance(family, str):
        raise VerifierError("family", "is no text")
    if "verifier" not in row:
        raise VerifierError("verifier", 'is missing; write one such as {"kind": "exact", "answer": "42"}')
    return Task(str(own_id), _messages(row), build(row["verifier"]), family)


def _messages(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    if "prompt" in row:
        if not isinstance(row["prompt"], str) or not row["prompt"]:
            raise VerifierError("prompt", "is no text")
        return _user(row["prompt"])
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise VerifierError("messages", "is no list of messages")
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise VerifierError(f"messages[{place}]", 'is no message such as {"role": "user", "content": "..."}')
    return tuple(messages)


def _ifeval_row(row: Mapping[str, Any], _: int) -> Task:
    pairs = zip(row["instruction_id_list"], row["kwargs"], strict=True)
    instructions = [{"id": instruction, **arguments} for instruction, arguments in pairs]
    verifier = build({"kind": "ifeval", "instructions": instructions})
    kinds = {instruction.partition(":")[0] for instruction in row["instruction_id_list"]}
    family = f"ifeval {kinds.pop()}" if len(kinds) == 1 else "ifeval several"
    return Task(str(row["key"]), _user(row["prompt"]), verifier, family)


def _gsm8k_row(row: Mapping[str, Any], number: int) -> Task:
    answer = row["answer"].rpartition("####")[2].strip()
    return Task(
        str(number), _user(f"{row['question']}\n\n{_GSM8K_REQUEST}"), build({"kind": "number", "answer": answer})
    )


def _user(prompt: str) -> tuple[Mapping[str, Any], ...]:
    return ({"role": "user", "content": prompt},)


_BUNDLED: Final[Mapping[str, tuple[str, Callable[[Mapping[str, Any], int], Task]]]] = {
    "ifeval": ("325 prompts, a random 60 % sample of the 541 of IFEval; not the whole benchmark", _ifeval_row),
    "gsm8k": (
        "200 questions, the first of a random 60 % sample of the 1,319 of GSM8K's test set; not the whole benchmark",
        _gsm8k_row,
    ),
}
_SYNTHETIC_EACH: Final = 200  # of each family at most
_SYNTHETIC: Final[Mapping[str, Sequence[str]]] = {
    "synthetic": families.BENCHMARK,
    "synthetic-all": tuple(families.FAMILIES),
}
