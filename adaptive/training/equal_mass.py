"""Bins of equal mass: each holds about as many values, and equal values lie in one bin."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def equal_mass(values: Floats, most: int) -> NDArray[np.intp]:
    """Return each value's bin, from 0 upwards in the order of the values; at most `most` bins, none of them empty.

    Shape of both: (values,). Fewer bins come of values that are often equal.
    """
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2
    bins = np.minimum((middle * most / max(1, len(values))).astype(np.intp), most - 1)
    _, dense = np.unique(bins[place], return_inverse=True)
    return dense
