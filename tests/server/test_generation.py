from __future__ import annotations

import multiprocessing
import stat
import threading
import time
from pathlib import Path

import pytest

from server.errors import StoreUnavailable
from server.generation import LocalGeneration, PolledGeneration, SharedGeneration


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "generation"


def raise_many(path: Path, first: int) -> None:
    generation = SharedGeneration(path)
    for number in range(first, 2001, 2):
        generation.raise_to(number)
    generation.close()


def wait_for(generation: PolledGeneration, number: int) -> None:
    deadline = time.monotonic() + 10
    while generation.current() != number:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_new_file_starts_at_zero_and_is_the_owners_only(path: Path) -> None:
    generation = SharedGeneration(path)
    assert generation.current() == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    generation.close()


def test_a_number_raised_in_one_is_at_once_seen_in_another(path: Path) -> None:
    writer, reader = SharedGeneration(path), SharedGeneration(path)
    for number in (1, 2, 2**40):
        writer.raise_to(number)
        assert reader.current() == number
    writer.close()
    reader.close()


@pytest.mark.parametrize("make", [SharedGeneration, lambda _: LocalGeneration()])
def test_the_number_never_falls(path: Path, make: type[SharedGeneration]) -> None:
    generation = make(path)
    generation.raise_to(7)
    generation.raise_to(5)
    assert generation.current() == 7
    generation.close()


def test_the_number_outlives_the_process_that_raised_it(path: Path) -> None:
    first = SharedGeneration(path)
    first.raise_to(7)
    first.close()
    second = SharedGeneration(path)
    assert second.current() == 7
    second.close()


def test_the_highest_number_wins_whatever_threads_and_processes_do(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=raise_many, args=(path, first)) for first in (1, 2)]
    threads = [threading.Thread(target=raise_many, args=(path, first)) for first in (1, 2)]
    generation = SharedGeneration(path)
    seen = [0]
    for process in processes:
        process.start()
    for thread in threads:
        thread.start()
    while any(process.is_alive() for process in processes):
        seen.append(generation.current())
    for thread in threads:
        thread.join()
    assert seen == sorted(seen)
    assert generation.current() == 2000
    generation.close()


def test_a_file_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SharedGeneration(tmp_path / "missing" / "generation")


def test_a_polled_number_follows_what_it_asks(path: Path) -> None:
    asked = SharedGeneration(path)
    polled = PolledGeneration(asked.current, interval_s=0.01)
    asked.raise_to(3)
    wait_for(polled, 3)
    polled.raise_to(9)  # this process' own write: seen at once, and kept though the other still says 3
    assert polled.current() == 9
    asked.raise_to(12)
    wait_for(polled, 12)
    polled.close()
    asked.close()


def test_a_polled_number_stays_while_nobody_answers_and_goes_on_afterwards() -> None:
    answers = iter([1, None, None, 5])
    failures = []

    def ask() -> int:
        answer = next(answers, 5)
        if answer is None:
            failures.append(polled.current())
            raise StoreUnavailable("down")
        return answer

    polled = PolledGeneration(ask, interval_s=0.01)
    wait_for(polled, 5)
    polled.close()
    assert failures == [1, 1]
