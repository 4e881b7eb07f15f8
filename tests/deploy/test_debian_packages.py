"""`deploy/debian_packages.sh` where it can install nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "debian_packages.sh"


def run_with(folder: Path, user_id: int) -> subprocess.CompletedProcess[str]:
    stub = folder / "id"
    stub.write_text(f"#!/bin/sh\necho {user_id}\n")
    stub.chmod(0o755)
    environment = os.environ | {"PATH": str(folder)}
    return subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, check=False)


def test_without_root_it_says_what_is_missing_and_goes_on(tmp_path: Path) -> None:
    ran = run_with(tmp_path, 1000)
    assert ran.returncode == 0, ran.stderr
    assert "Tests are skipped that need these packages:" in ran.stdout
    assert ran.stdout.count(" prometheus") == 2  # named once, and once in the remedy, though two programs are missing
    assert "apt-get install --no-install-recommends" in ran.stdout


def test_without_apt_it_does_the_same_for_root(tmp_path: Path) -> None:
    assert "Tests are skipped" in run_with(tmp_path, 0).stdout


def test_where_everything_is_there_it_says_nothing(tmp_path: Path) -> None:
    for program in ("nginx", "prometheus", "promtool"):
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    ran = run_with(tmp_path, 1000)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
