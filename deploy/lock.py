"""Write the lock files beside this script: what `make` installs, exact to the version.

Run it as `make lock`, with the Python version the project ships on. pip resolves `pyproject.toml` (everything
together, so that both files agree) and the result is split in two:

- `requirements/base.txt`: the proxy and the development tools; enough for `make check`.
- `requirements/engine-cpu.txt`: what the embedded CPU engine adds on top.

Both are installed with `pip install --no-deps`: nothing is resolved again, and the packages named in `LEFT_OUT`
stay out although vLLM asks for them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = Path(__file__).resolve().parent / "requirements"

LEFT_OUT = {
    "torchvision": "its published build does not match vLLM's CPU build of torch, and `import transformers` then fails "
    "(`operator torchvision::nms does not exist`); text generation needs none of it",
    "torchaudio": "as torchvision",
    "torchcodec": "as torchvision",
    "triton": "1 GB of GPU compiler that xgrammar declares and that neither it nor vLLM uses on a CPU",
    "pip": "the environment has its own",
}


def normalized(name: str) -> str:
    """Return the distribution name as PEP 503 writes it."""
    return name.lower().replace("_", "-").replace(".", "-")


def resolve(requirements: list[str], constraints: dict[str, str]) -> dict[str, str]:
    """Return {distribution: version} of what pip would install for `requirements` into an empty environment."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraint_file:
        constraint_file.writelines(f"{name}=={version}\n" for name, version in constraints.items())
        constraint_file.flush()
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--report", "-", "--constraint", constraint_file.name, *requirements]
        report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return {normalized(entry["metadata"]["name"]): entry["metadata"]["version"] for entry in report["install"]}


def write(path: Path, pins: dict[str, str]) -> None:
    """Write `pins` to `path`, one `name==version` a line, sorted."""
    lines = [f"{name}=={version}\n" for name, version in sorted(pins.items())]
    path.write_text("# Written by deploy/lock.py; do not edit.\n" + "".join(lines))
    print(f"{path.relative_to(ROOT)}: {len(lines)} packages")


def main() -> None:
    """Resolve once for everything, then split."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    base = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    base += project["build-system"]["requires"]
    engine = project["project"]["optional-dependencies"]["engine-cpu"]
    everything = {name: version for name, version in resolve(base + engine, {}).items() if name not in LEFT_OUT}
    base_pins = {name: everything[name] for name in resolve(base, everything)}
    write(REQUIREMENTS / "base.txt", base_pins)
    engine_pins = {name: version for name, version in everything.items() if name not in base_pins}
    write(REQUIREMENTS / "engine-cpu.txt", engine_pins)


if __name__ == "__main__":
    main()
