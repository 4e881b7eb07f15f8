"""What `preamble selfeval data` asks: prompts of data sets, of logged outcomes and of logged preferences.

A JSONL file has one object a line; `prompt` (a text) or `messages` (of a chat) is what is asked. Of

- a data set (`--tasks`): `id`, `verifier` and `family` beside it, all optional where the reward needs no verifier;
- an outcome log's export (`--outcomes`): `constitution` if there was one, as its JSON object or list of principles;
  every other column is ignored, and a prompt that comes again is asked once;
- logged preferences (`--preferences`): `chosen` and `rejected`, each a text; `id` and `family` if wanted;
- constitutions (`--constitutions`): `id`; `principles` (texts or objects, as the API takes them) or `text` (a Markdown
  list of principles, or one principle); `verifier` if a rule can tell whether a reply respects it.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from adaptive.evaluation.tasks import TaskError, load, read_text, rows
from adaptive.evaluation.verifiers import Verifier, VerifierError, build
from adaptive.splits import Shares, Split, split_of
from constitutions.compose import Placement, compose_messages, render_block
from constitutions.constitution import Constitution, ConstitutionError, Limits
from constitutions.formats import from_plain, parse

_LIST_ITEM: Final = re.compile(r"^(?:[-*+]|\d+[.)])\s", re.MULTILINE)
_LONG: Final = Limits(max_principles=1000, max_principle_chars=100_000, max_chars=1_000_000)


@dataclass(frozen=True, slots=True)
class NamedConstitution:
    """block: what the model reads of it. respects: whether a reply does what it says, None if no rule can tell."""

    id: str
    block: str
    respects: Verifier | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt to be answered.

    id: unique in a run. messages: without a constitution. split: by these messages. verify: None where no rule judges a
    reply. logged: answers that were logged with it, the preferred one first; then none are sampled.
    """

    id: str
    family: str
    split: Split
    messages: tuple[Mapping[str, Any], ...]
    verify: Verifier | None = None
    constitution: NamedConstitution | None = None
    logged: tuple[str, ...] = ()

    def composed(self, placement: Placement) -> list[dict[str, Any]]:
        """Return the messages with the constitution in them, as the proxy would send them."""
        messages = [dict(message) for message in self.messages]
        return messages if self.constitution is None else compose_messages(messages, self.constitution.block, placement)


def read_tasks(name_or_path: str, shares: Shares, limit: int | None, *, verified: bool) -> list[Prompt]:
    """Return the first prompts of a data set. verified: each must have a verifier. Raises `TaskError`."""
    path = Path(name_or_path)
    try:
        data = load(name_or_path)
    except TaskError:
        if verified or not path.is_file():
            raise
        return _plain_tasks(path, shares)[:limit]
    return [
        Prompt(
            id=f"{data.name}/{task.id}",
            family=task.family or data.name,
            split=split_of(task.messages, shares),
            messages=task.messages,
            verify=task.verify,
        )
        for task in data.tasks[:limit]
    ]


def read_outcomes(path: Path, shares: Shares, limit: int | None) -> list[Prompt]:
    """Return the prompts of an outcome log's export, each once. Raises `TaskError`."""
    found: dict[str, Prompt] = {}
    for where, row in _rows(path):
        messages = _messages(where, row)
        constitution = None
        if row.get("constitution") is not None:
            try:
                rules = from_plain(row["constitution"], _LONG)
            except ConstitutionError as error:
                raise TaskError(f"{where}: constitution: {error.message}.") from error
            constitution = NamedConstitution(f"outcome/{len(found) + 1}", render_block(rules))
        key = json.dumps([messages, None if constitution is None else constitution.block], sort_keys=True)
        prompt = Prompt(
            id=f"{path.stem}/{len(found) + 1}",
            family=path.stem,
            split=split_of(messages, shares),
            messages=messages,
            constitution=constitution,
        )
        found.setdefault(key, prompt)
    return list(found.values())[:limit]


def read_preferences(path: Path, shares: Shares, limit: int | None) -> list[Prompt]:
    """Return prompts with a preferred and another answer. Raises `TaskError`."""
    found = []
    for number, (where, row) in enumerate(_rows(path), start=1):
        messages = _messages(where, row)
        answers = tuple(_text(where, row, name) for name in ("chosen", "rejected"))
        found.append(
            Prompt(
                id=f"{path.stem}/{row.get('id', number)}",
                family=_optional_text(where, row, "family") or path.stem,
                split=split_of(messages, shares),
                messages=messages,
                logged=answers,
            )
        )
    return found[:limit]


def read_constitutions(path: Path) -> list[NamedConstitution]:
    """Return the constitutions of a file. Raises `TaskError`."""
    found: dict[str, NamedConstitution] = {}
    for where, row in _rows(path):
        name = _text(where, row, "id")
        if name in found:
            raise TaskError(f"{where}: id {name!r} is there already; give every line its own.")
        try:
            block = render_block(_constitution(where, row))
        except ConstitutionError as error:
            raise TaskError(f"{where}: {error.message}.") from error
        if not block:
            raise TaskError(f"{where}: principles all have the weight 0; give one another weight, or leave it out.")
        found[name] = NamedConstitution(name, block, _verifier(where, row))
    return list(found.values())


def mix(prompts: Sequence[Prompt], constitutions: Sequence[NamedConstitution], share: float, seed: int) -> list[Prompt]:
    """Return the prompts, about that share of those without a constitution with one, chosen at random by the seed.

    Which prompts these are depends on nothing but the seed and the prompt, so more prompts change none of them.
    """
    if not constitutions:
        return list(prompts)
    mixed = []
    for prompt in prompts:
        rng = random.Random(f"constitution/{seed}/{prompt.id}")  # noqa: S311 -- no secret
        if prompt.constitution is None and rng.random() < share:
            mixed.append(replace(prompt, constitution=rng.choice(constitutions)))
        else:
            mixed.append(prompt)
    return mixed


def check_ids(prompts: Sequence[Prompt]) -> None:
    """Raise `TaskError` where two prompts have the same id."""
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise TaskError(
                f"id {prompt.id!r} is there twice; give a file once, and files and lines names of their own."
            )
        seen.add(prompt.id)


def _plain_tasks(path: Path, shares: Shares) -> list[Prompt]:
    found = []
    for number, (where, row) in enumerate(_rows(path), start=1):
        messages = _messages(where, row)
        found.append(
            Prompt(
                id=f"{path.stem}/{row.get('id', number)}",
                family=_optional_text(where, row, "family") or path.stem,
                split=split_of(messages, shares),
                messages=messages,
                verify=_verifier(where, row),
            )
        )
    return found


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the objects of a file, each with where it stands. Raises `TaskError`, also for a file without any."""
    empty = True
    for _, where, row in rows(read_text(path), str(path)):
        empty = False
        yield where, row
    if empty:
        raise TaskError(f"{path} is empty; it has one JSON object a line.")


def _messages(where: str, row: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    # Tools for preference training call the messages `prompt` too.
    said = row.get("messages", row.get("prompt"))
    if isinstance(said, str) and said:
        return ({"role": "user", "content": said},)
    if not isinstance(said, list) or not said:
        raise TaskError(f"{where}: messages is missing; give a list of messages, or prompt as a text.")
    for place, message in enumerate(said):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise TaskError(f'{where}: messages[{place}] is no message such as {{"role": "user", "content": "..."}}.')
    return tuple(said)


def _text(where: str, row: Mapping[str, Any], name: str) -> str:
    text = row.get(name)
    if not isinstance(text, str) or not text:
        raise TaskError(f"{where}: {name} is {'missing' if text is None else 'no text'}; give it as a text.")
    return text


def _optional_text(where: str, row: Mapping[str, Any], name: str) -> str | None:
    return None if row.get(name) is None else _text(where, row, name)


def _verifier(where: str, row: Mapping[str, Any]) -> Verifier | None:
    if row.get("verifier") is None:
        return None
    try:
        return build(row["verifier"])
    except VerifierError as error:
        raise TaskError(f"{where}: {error}.") from error


def _constitution(where: str, row: Mapping[str, Any]) -> Constitution:
    """Return what a line says. Raises `ConstitutionError`, and `TaskError` where neither form is there."""
    if ("principles" in row) == ("text" in row):
        raise TaskError(f"{where}: principles or text must be there, and not both.")
    if "principles" in row:
        return from_plain({"principles": row["principles"]}, _LONG)
    text = _text(where, row, "text")
    if _LIST_ITEM.search(text):
        return parse("text/markdown", text.encode(), _LONG)
    return from_plain([text], _LONG)
