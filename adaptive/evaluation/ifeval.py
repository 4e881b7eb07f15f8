"""IFEval's instructions, checked strictly. The checkers follow."""

from __future__ import annotations


class InstructionError(ValueError):
    """field, problem."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field
        self.problem = problem


def read_instruction(described: object) -> object:
    """Return it as it is."""
    return described


def follows(reply: str, instruction: object) -> bool:
    """Not yet."""
    raise NotImplementedError
