"""What the loop tells a streaming client: a candidate is settled on, and its tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from adaptive.engine import GeneratedTokens


@dataclass(frozen=True, slots=True)
class Committed:
    """A candidate is the client's choice number `choice` (from 0, best first). Nothing takes this back.

    held_back: how many of its tokens were there already; they follow at once. at_s: seconds into the run.
    """

    choice: int
    candidate: int
    held_back: int
    at_s: float


@dataclass(frozen=True, slots=True)
class Delta:
    """The next tokens of a choice, after its `Committed`: together the candidate's tokens, once each and in order."""

    choice: int
    tokens: GeneratedTokens


@dataclass(frozen=True, slots=True)
class Quiet:
    """Nothing has happened for as long as the listener wanted to be told of (`stream.streamed`)."""


Event = Committed | Delta
Listener = Callable[[Event], None]


def unheard(_: Event) -> None:
    """Listen to nothing, for a client that wants the reply in one piece."""
