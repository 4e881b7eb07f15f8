"""What `preamble eval` and `preamble selfeval` fail with. Apart: the command line knows it without loading them."""

from __future__ import annotations


class EvalError(Exception):
    """An evaluation could not be made, or not go on. The message says why and what to do about it."""
