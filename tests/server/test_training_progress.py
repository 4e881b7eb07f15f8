"""What is shown while a model is trained."""

from __future__ import annotations

import io

from rich.console import Console

from server.training_progress import Training


def told(*, terminal: bool) -> str:
    written = io.StringIO()
    with Training(Console(file=written, force_terminal=terminal, width=120, color_system=None)) as shown:
        shown.tell("training tokens", 0, 1)
        shown.tell("training tokens: loss 0.7000 [x]", 50, 200)
        for place in range(3):
            shown.tell("scoring for question, unseen", place, 3)
    return written.getvalue()


def test_a_log_file_has_a_line_for_each_validation_and_each_thing_that_is_done() -> None:
    assert told(terminal=False).splitlines() == [
        "training tokens",
        "training tokens: loss 0.7000 [x] (50 of 200)",
        "scoring for question, unseen",
    ]


def test_a_terminal_has_a_bar_that_goes_away() -> None:
    written = told(terminal=True)
    assert "scoring for question, unseen" in written
    assert "2/3" in written
    assert written.endswith("\x1b[2K")
