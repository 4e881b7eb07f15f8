"""What can be wrong with a policy. The engine's errors are in `engine.py`, a scorer's in `scoring.py`."""

from __future__ import annotations


class PolicyError(ValueError):
    """A policy that cannot be followed.

    field: the wrong field, such as `n_max` or `checkpoints[1].keep`. problem: what is wrong with it, and the remedy.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field
        self.problem = problem
