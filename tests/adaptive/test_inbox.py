"""An inbox gives what was put in, in order, once."""

from __future__ import annotations

import asyncio

from adaptive.inbox import Inbox
from adaptive.virtual_time import run_virtually


def test_all_that_was_put_in_is_taken_at_once_and_in_order() -> None:
    async def main() -> tuple[list[int], int]:
        inbox: Inbox[int] = Inbox()
        for number in range(3):
            inbox.put(number)
        return await inbox.take(), len(inbox)

    assert run_virtually(main()) == ([0, 1, 2], 0)


def test_who_waits_is_woken_by_the_first_and_gets_what_came_with_it() -> None:
    async def main() -> list[int]:
        inbox: Inbox[int] = Inbox()
        taking = asyncio.create_task(inbox.take())
        await asyncio.sleep(1)
        inbox.put(1)
        inbox.put(2)
        return await taking

    assert run_virtually(main()) == [1, 2]


def test_a_wait_that_is_cancelled_loses_nothing() -> None:
    async def main() -> list[int]:
        inbox: Inbox[int] = Inbox()
        taking = asyncio.create_task(inbox.take())
        await asyncio.sleep(1)
        inbox.put(1)
        taking.cancel()  # in the same moment: it has been woken and has taken nothing yet
        await asyncio.wait({taking})
        inbox.put(2)
        return [0] if not taking.cancelled() else await inbox.take()

    assert run_virtually(main()) == [1, 2]
