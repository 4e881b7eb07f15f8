"""Who samples among the virtual users, and what they look for in a report."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# In a process of its own: importing locust patches the standard library of the process that does.
SCRIPT = """
from loadtests.locustfile import is_sampled, wrong_report
for share, expected in ((0.0, 0), (0.25, 5), (0.5, 10), (1.0, 20)):
    assert sum(is_sampled(user, share) for user in range(20)) == expected
good = {
    "candidates": {"drawn": 2, "pruned": 1}, "tokens": {"generated": 12}, "stop_reason": "threshold",
    "choices": [{"tokens": 8}],
}
assert wrong_report(good, 8) == ""
assert "without a report" in wrong_report(None, 8)
assert "count the tokens" in wrong_report(good, 9)
assert "9 candidates" in wrong_report(good | {"candidates": {"drawn": 9, "pruned": 0}}, 8)
assert "every candidate pruned" in wrong_report(good | {"candidates": {"drawn": 2, "pruned": 2}}, 8)
assert "what was spent" in wrong_report(good | {"tokens": {"generated": 3}}, 8)
"""


def test_users_who_sample_are_spread_evenly_and_find_what_is_wrong_with_a_report() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
