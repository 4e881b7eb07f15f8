"""Reads and writes constitutions as JSON, YAML and Markdown, by media type. Knows nothing else of HTTP."""

from __future__ import annotations

import json
from collections import Counter
from typing import Literal

import orjson

from constitutions.constitution import Constitution, ConstitutionError, Limits
from constitutions.markdown_format import read_markdown, render_markdown
from constitutions.plain import from_plain, shown, to_plain
from constitutions.yaml_format import read_yaml, render_yaml

__all__ = ["SUPPORTED", "UnknownMediaType", "from_plain", "parse", "render", "select_media_type", "to_plain"]

_Format = Literal["json", "yaml", "markdown"]

SUPPORTED: tuple[str, ...] = ("application/json", "application/yaml", "text/markdown")
"""The media type of each format, the preferred one first."""

# Those of `SUPPORTED`, then the other names in use for them; the order decides between equally acceptable ones.
_FORMATS: dict[str, _Format] = {
    "application/json": "json",
    "application/yaml": "yaml",  # RFC 9512
    "text/markdown": "markdown",  # RFC 7763
    "text/json": "json",
    "application/x-yaml": "yaml",
    "text/yaml": "yaml",
    "text/x-yaml": "yaml",
    "text/x-markdown": "markdown",
}


class UnknownMediaType(ValueError):
    """The media type is none that constitutions are read from or written in; the message lists those that are."""


def parse(media_type: str, body: bytes, limits: Limits) -> Constitution:
    """Return the constitution in `body`.

    `media_type` is the value of a Content-Type header. Raises `UnknownMediaType`, or `ConstitutionError` for a body
    that is no constitution or is over the limits; a body over `limits.max_body_bytes` is refused unread.
    """
    kind = _format_of(media_type)
    if len(body) > limits.max_body_bytes:
        raise ConstitutionError(
            "",
            f"has {len(body)} bytes, and no constitution within the limits needs more than {limits.max_body_bytes}: "
            "shorten it",
        )
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConstitutionError(
            "", f"is not UTF-8: byte 0x{body[error.start]:02X} at offset {error.start}. Send it as UTF-8"
        ) from None
    if kind == "markdown":
        return from_plain({"principles": read_markdown(text, limits)}, limits)
    return from_plain(_read_json(text) if kind == "json" else read_yaml(text, limits), limits)


def render(media_type: str, constitution: Constitution) -> bytes:
    """Return the constitution in a format, as UTF-8; `parse` gives back an equal one. Raises `UnknownMediaType`."""
    kind = _format_of(media_type)
    if kind == "json":
        return orjson.dumps(to_plain(constitution))
    return (render_yaml(constitution) if kind == "yaml" else render_markdown(constitution)).encode()


def select_media_type(accept: str | None) -> str | None:
    """Return the media type to answer in, or None if nothing that can be written is acceptable.

    `accept` is the value of an Accept header (RFC 9110, section 12.5.1): the most specific range decides on a type,
    the highest quality wins, and between equals JSON, then YAML, then Markdown. An absent or empty header accepts all.
    """
    if accept is None or not accept.strip():
        return SUPPORTED[0]
    qualities = dict(filter(None, map(_range_and_quality, accept.lower().split(","))))
    best, best_quality = None, 0.0
    for name in _FORMATS:
        ranges = (name, f"{name.partition('/')[0]}/*", "*/*")
        quality = next((qualities[accepted] for accepted in ranges if accepted in qualities), 0.0)
        if quality > best_quality:
            best, best_quality = name, quality
    return best


def _range_and_quality(written: str) -> tuple[str, float] | None:
    accepted, *parameters = (part.strip() for part in written.split(";"))
    quality = next((value for name, _, value in (part.partition("=") for part in parameters) if name == "q"), "1")
    try:
        number = float(quality)
    except ValueError:
        return None
    return (accepted, number) if 0 <= number <= 1 else None


def _format_of(media_type: str) -> _Format:
    name, *parameters = (part.strip().lower() for part in media_type.split(";"))
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "charset" and value.strip(" \"'") not in {"utf-8", "utf8", "us-ascii"}:
            raise UnknownMediaType(f"the charset {shown(value)} is not supported: send the constitution as UTF-8")
    if name.endswith("+json"):
        return "json"
    if name.endswith("+yaml"):
        return "yaml"
    if name not in _FORMATS:
        what = f"the media type {shown(name)} is not supported" if name else "there is no media type"
        raise UnknownMediaType(f"{what}: use one of {', '.join(SUPPORTED)}")
    return _FORMATS[name]


def _read_json(text: str) -> object:
    # Not orjson: it takes the last of two equal keys without a word, and says less about where an error is.
    try:
        value: object = json.loads(text, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        raise ConstitutionError(
            "", f"is not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}. Correct it there"
        ) from None
    except RecursionError:
        raise ConstitutionError("", "is nested too deeply: give one list of principles") from None
    except ConstitutionError:
        raise
    except ValueError:
        raise ConstitutionError("", "has a number with too many digits: give a smaller one") from None
    return value


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) < len(pairs):
        again, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ConstitutionError("", f"has the key {shown(again)} twice in one object: remove one of the two")
    return value
