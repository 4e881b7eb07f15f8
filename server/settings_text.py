"""The effective settings as a TOML file that explains itself: what each means, where its value came from."""

from __future__ import annotations

import json
import textwrap
from typing import Final

from pydantic import SecretStr

from server.settings import MASK, LoadedSettings, Settings

_WIDTH: Final = 110
_HEAD: Final = """\
# The effective settings of Preamble, as a configuration file: save it as preamble.toml and change what you like.
# Every setting can also be given as PREAMBLE_<NAME> in the environment, which goes before this file.
"""


def render_settings(loaded: LoadedSettings) -> str:
    """Return the settings as TOML; reading it gives the same settings, except that secrets are masked and left out."""
    blocks = [_HEAD]
    for name, value in loaded.settings.masked().items():
        field = Settings.model_fields[name]
        what = textwrap.fill(field.description or "", _WIDTH, initial_indent="# ", subsequent_indent="# ")
        source = loaded.sources.get(name, "default")
        blocks.append(f"{what}\n{_assignment(loaded.settings, name, value)}  # {source}\n")
    return "\n".join(blocks)


def settings_as_json(loaded: LoadedSettings) -> dict[str, object]:
    """Return every setting's value, secrets masked, and source."""
    return {
        name: {"value": value, "source": loaded.sources.get(name, "default")}
        for name, value in loaded.settings.masked().items()
    }


def _assignment(settings: Settings, name: str, value: object) -> str:
    if value is None:
        return f"# {name} ="
    # What is masked must not be read back as if the asterisks were the secret.
    hidden = isinstance(getattr(settings, name), SecretStr) or MASK in str(value)
    # Nor the policy of a file, beside the file itself.
    hidden |= name == "policy" and settings.policy_file is not None
    return f"{'# ' if hidden else ''}{name} = {_toml(value)}"


def _toml(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_toml(item)}" for name, item in value.items() if item is not None) + "}"
    # JSON's strings, numbers and booleans are TOML's, but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
