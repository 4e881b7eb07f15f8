"""Starts what is compared, each as the process it would be in production, and stops all of it again.

`fake_upstream`, `nginx` and `preamble` are context managers that give a `Target`. Every process gets a process group of
its own: Ctrl-C reaches the benchmark only, which then ends each group, workers included.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from loadtests.generator import chat_body

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

START_LIMIT_S = 30.0
STOP_LIMIT_S = 5.0
PRINCIPLES = (
    "Prefer a short, direct answer; add detail only where the question needs it.",
    "Say plainly when something is uncertain, and say what would settle it.",
    "Use metric units and the 24-hour clock.",
    "Explain a technical term the first time that it is used.",
    "Give the reason for a recommendation together with the recommendation.",
    "Where there is a risk to health or property, name it before the instructions.",
    "Do not flatter, and do not apologise for what is not a fault.",
    "Answer in the language of the question, in complete sentences and without headings.",
)
_SEARCH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/local/sbin"  # Debian keeps nginx off a user's PATH
_ROOT = Path(__file__).resolve().parent.parent
_CHAT = "/v1/chat/completions"


class TargetError(Exception):
    """Something to be measured cannot be, or is not set up as it should be. The message says what to do about it."""


@dataclass(frozen=True, slots=True)
class Target:
    """A running server. `requests_url` and `streams_url` answer chats; `headers` go with every request."""

    name: str
    pid: int
    requests_url: str
    streams_url: str
    headers: tuple[tuple[str, str], ...] = ()


def nginx_binary(search: str = _SEARCH) -> str:
    """Return the path of nginx, looked for in `search`. Raises `TargetError` with the remedy when it is not there."""
    found = shutil.which("nginx", path=search)
    if found is None:
        raise TargetError(
            "nginx is not installed, and it is what the proxy is compared with. "
            "Install it (Debian: `apt-get install nginx-light`; it need not be running) and start again."
        )
    return found


@contextlib.contextmanager
def fake_upstream(folder: Path, *, gap_s: float) -> Iterator[Target]:
    """Run the fake vLLM as a process of its own."""
    port = _free_port()
    command = [sys.executable, "-m", "loadtests.fake_upstream", f"--port={port}", f"--gap-ms={gap_s * 1e3}"]
    with _started("fake upstream", command, folder) as process:
        _wait_until_answers("fake upstream", process, port, "/health", folder)
        url = f"http://127.0.0.1:{port}{_CHAT}"
        yield Target("direct", process.pid, url, url)


@contextlib.contextmanager
def nginx(folder: Path, upstream: Target, *, access_log: bool) -> Iterator[Target]:
    """Run nginx as a plain reverse proxy: one worker, keep-alive on both sides, buffering off where answers stream.

    Raises `TargetError` when it is not installed or does not start.
    """
    requests_port, streams_port = _free_port(), _free_port()
    host = upstream.requests_url.split("/")[2]
    config = folder / "nginx.conf"
    config.write_text(_nginx_config(folder, host, requests_port, streams_port, access_log=access_log))
    command = [nginx_binary(), "-p", str(folder), "-c", str(config), "-e", str(folder / "nginx.log")]
    with _started("nginx", command, folder) as process:
        _wait_until_answers("nginx", process, requests_port, "/health", folder)
        yield Target(
            "nginx",
            process.pid,
            f"http://127.0.0.1:{requests_port}{_CHAT}",
            f"http://127.0.0.1:{streams_port}{_CHAT}",
        )


def _nginx_config(folder: Path, upstream: str, requests_port: int, streams_port: int, *, access_log: bool) -> str:
    temporary = "\n".join(
        f"  {kind}_temp_path {folder / kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    # As root, nginx would hand the worker to a user that may not read `folder`.
    user = f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else ""
    log = f"{folder / 'access.log'}" if access_log else "off"
    return f"""{user}
daemon off;
worker_processes 1;
pid {folder / "nginx.pid"};
events {{ worker_connections 4096; }}
http {{
{temporary}
  access_log {log};
  keepalive_requests 100000000;
  client_body_buffer_size 128k;
  upstream fake {{ server {upstream}; keepalive 256; keepalive_requests 100000000; }}
  proxy_pass_request_headers on;
  proxy_http_version 1.1;
  proxy_set_header Connection "";
  server {{ listen 127.0.0.1:{requests_port} backlog=2048; location / {{ proxy_pass http://fake; }} }}
  server {{
    listen 127.0.0.1:{streams_port} backlog=2048;
    location / {{ proxy_pass http://fake; proxy_buffering off; }}
  }}
}}
"""


@contextlib.contextmanager
def preamble(
    folder: Path, upstream: Target, *, access_log: bool, name: str = "preamble", tree: Path = _ROOT
) -> Iterator[Target]:
    """Run `preamble serve --upstream`, one worker, with API keys, a constitution, salt and metrics all on.

    A user's key is made and eight principles are stored over REST; then one chat shows that each part is really on the
    path. `tree` is the checkout that it is run from. Raises `TargetError` when it does not start or a part is missing.
    """
    port = _free_port()
    host = upstream.requests_url.split("/")[2]
    admin_key = "pk-admin-" + secrets.token_hex(24)
    settings = {
        "PREAMBLE_HOST": "127.0.0.1",
        "PREAMBLE_PORT": str(port),
        "PREAMBLE_AUTH": "required",
        "PREAMBLE_ADMIN_KEY": admin_key,
        "PREAMBLE_SECRET": secrets.token_hex(32),
        "PREAMBLE_DATA_DIR": str(folder / name),
        "PREAMBLE_ACCESS_LOG": str(access_log),
        # All the load comes from one user; a ceiling would make less work of it.
        "PREAMBLE_MAX_CANDIDATES": "4096",
        "PREAMBLE_MAX_CANDIDATES_PER_USER": "4096",
    }
    command = [sys.executable, "-m", "server", "serve", "--upstream", f"http://{host}"]
    with _started(name, command, folder, settings, tree) as process:
        _wait_until_answers(name, process, port, "/ready", folder)
        key = _register(port, admin_key)
        _check_that_all_is_on(port, key, int(host.rpartition(":")[2]))
        url = f"http://127.0.0.1:{port}{_CHAT}"
        yield Target(name, process.pid, url, url, (("Authorization", f"Bearer {key}"),))


def _register(port: int, admin_key: str) -> str:
    """Make a user with a constitution and return the user's key."""
    status, body, _ = _call(port, "POST", "/v1/keys", admin_key, {"user": "loadtest", "label": "overhead"})
    if status not in {200, 201}:
        raise TargetError(f"preamble refused to make a key ({status}): {body!r}. Is this the preamble of this commit?")
    key = str(orjson.loads(body)["key"])
    constitution = {"principles": [{"text": text} for text in PRINCIPLES]}
    status, body, _ = _call(port, "PUT", "/v1/constitution", key, constitution)
    if status not in {200, 201}:
        raise TargetError(f"preamble refused the constitution ({status}): {body!r}.")
    return key


def _check_that_all_is_on(port: int, key: str, upstream_port: int) -> None:
    """Send one chat and look at both of its ends. Half the work at half the cost proves nothing."""
    chat = orjson.loads(chat_body(stream=False))
    refused, _, _ = _call(port, "POST", _CHAT, "pk-wrong", chat)
    status, _, headers = _call(port, "POST", _CHAT, key, chat)
    _, seen, _ = _call(upstream_port, "GET", "/last_chat")
    forwarded = orjson.loads(seen)
    _, metrics, _ = _call(port, "GET", "/metrics")
    system = str(forwarded["messages"][0].get("content", ""))
    missing = [
        what
        for what, is_on in (
            ("answering chats", status == http.client.OK),
            ("authentication", refused == http.client.UNAUTHORIZED),
            ("the constitution's header", "x-preamble-constitution" in headers),
            ("the constitution", all(text in system for text in PRINCIPLES)),
            ("the cache salt", bool(forwarded.get("cache_salt"))),
            ("metrics", b"preamble_" in metrics),
        )
        if not is_on
    ]
    if missing:
        raise TargetError(f"preamble runs, but without {', '.join(missing)}; the comparison would not be fair.")


def counts(upstream: Target) -> dict[str, int]:
    """Return what the fake upstream has counted so far: `chats`, `scorings`, `scored`, `abandoned`."""
    _, body, _ = _call(int(upstream.requests_url.split("/")[2].rpartition(":")[2]), "GET", "/counts")
    found: dict[str, int] = orjson.loads(body)
    return found


def _call(
    port: int, method: str, path: str, key: str | None = None, payload: Any = None
) -> tuple[int, bytes, dict[str, str]]:
    """Return status, body and headers (lowercase names) of one request. Raises `OSError`, `HTTPException`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_LIMIT_S)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        if payload is None:
            connection.request(method, path, headers=headers)
        else:
            connection.request(method, path, orjson.dumps(payload), {**headers, "content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read(), {name.lower(): value for name, value in response.getheaders()}
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _started(
    name: str,
    command: Sequence[str],
    folder: Path,
    settings: Mapping[str, str] | None = None,
    tree: Path = _ROOT,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a process group of its own, output to a file in `folder`; end the group on the way out."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PREAMBLE_")}
    environ |= {"PYTHONPATH": str(tree), **(settings or {})}
    with contextlib.ExitStack() as stack:
        with _log(name, folder).open("wb") as output, _interrupts_deferred():
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environ,
                cwd=folder,
                start_new_session=True,
            )
            stack.callback(_end_group, process)
        yield process


@contextlib.contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the context ends: a child whose start they cut short would be nobody's to end.

    They are not masked, as a child inherits a mask, and could then not be ended by them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # no signal interrupts another thread
        return
    came: list[int] = []
    heeded = [each for each in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, lambda number, _: came.append(number)) for each in heeded}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        for number in came:
            signal.raise_signal(number)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ask the group to end, then make it. A second Ctrl-C has to wait until that is done."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_LIMIT_S)
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _log(name: str, folder: Path) -> Path:
    return folder / f"{name.replace(' ', '-')}.out"


def _wait_until_answers(name: str, process: subprocess.Popen[bytes], port: int, path: str, folder: Path) -> None:
    """Return once `path` answers 200. Raises `TargetError` with the end of the log when it does not in time."""
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if _call(port, "GET", path)[0] == http.client.OK:
                return
        time.sleep(0.02)
    said = "\n".join(_log(name, folder).read_text(errors="replace").splitlines()[-15:])
    how = "did not become ready" if process.poll() is None else f"ended with status {process.returncode}"
    raise TargetError(f"{name} {how}. It said:\n{said}")
