"""Keeps web pages out of a proxy that asks for no key.

Without keys, being able to connect to loopback is the permission. Every page in a browser on this machine can connect
too: with a plain form post, or by giving its own domain the address 127.0.0.1 (DNS rebinding). Such requests carry the
page's origin, or its domain as Host; programs on this machine name the loopback address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import urlsplit

from server.errors import Forbidden


def check_same_machine(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raise `Forbidden` unless Host, and Origin where there is one, name this machine."""
    for name, value in headers:
        if name == b"host" and not _is_loopback(b"//" + value):
            raise Forbidden(
                "This proxy asks for no API key, so it only takes requests that name this machine as Host. "
                "Use http://127.0.0.1 or http://localhost in the base URL, or start the proxy with auth=required.",
                param="host",
            )
        if name == b"origin" and not _is_loopback(value):
            raise Forbidden(
                "This proxy asks for no API key, so it takes nothing from web pages of other machines. "
                "Start it with auth=required and send a key.",
                param="origin",
            )


@lru_cache(maxsize=1024)
def _is_loopback(address: bytes) -> bool:
    try:
        host = urlsplit(address.decode("ascii")).hostname or ""
    except ValueError:
        return False
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761, 6.3
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
