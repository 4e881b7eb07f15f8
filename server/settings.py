"""Every setting of the proxy, in one place: where it comes from, what it may be, what is wrong with a bad one.

Order, first wins: command-line options, `PREAMBLE_*` environment variables (an empty one counts as not set), the TOML
file (`--config`, `PREAMBLE_CONFIG`, or `preamble.toml` in the working directory), the defaults below.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import platformdirs
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from adaptive.errors import PolicyError
from adaptive.policy import Mode, SelectorName
from server.policy import PolicyFields, build
from server.policy_file import PolicyFile, read_policy_file

PREFIX = "PREAMBLE_"
MASK = "**********"
_SECRET_CHARS = 16
_EXPLORATIONS_ONE_IN = 4  # of a worker's concurrent candidates
_FEWEST_TO_EXPLORE = 2  # the smallest best-of-N
_TWO_POLICIES = "two_policies"
# pydantic's type where a default is taken from other settings and one of those is wrong, which has its own line.
_FOLLOWS_FROM_ANOTHER = "default_factory_not_called"

# user:password@ in a URL, and the value after an engine argument that carries a secret.
_URL_PASSWORD = re.compile(r"(?<=://)([^:/@]*):[^@]*(?=@)")
_SECRET_ARGUMENT = re.compile(r"--(?:api-key|hf-token)(?:=|$)")


class RewardRoute(StrEnum):
    """How the reward upstream is asked; `reward.py` says what each means."""

    AUTO = "auto"
    CLASSIFY = "classify"
    POOLING = "pooling"
    SCORE = "score"


def _policy_of_file(given: dict[str, Any]) -> PolicyFields:
    """Return the default policy where the setting `policy` gives none: the file's, else off."""
    file = given["policy_file"]
    return file.fields if isinstance(file, PolicyFile) else PolicyFields(mode=Mode.OFF)


class SettingsError(Exception):
    """A setting is wrong. The message names it, where it came from, and the remedy; one line per setting."""


class Settings(BaseModel):
    """The effective settings. Durations are in seconds (`_s`), sizes in bytes (`_bytes`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # Where the proxy listens.
    host: str = Field("127.0.0.1", description="Address to listen on. Anything but loopback switches API keys on.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    workers: int = Field(1, ge=1, le=64, description="Worker processes of the proxy.")

    # The upstream vLLM.
    upstream: str | None = Field(None, description="Base URL of a running vLLM. Unset: start the embedded engine.")
    upstream_api_key: SecretStr | None = Field(None, description="Sent to the upstream as a bearer token.")
    upstream_connections: int = Field(1024, ge=1, description="Most open connections to the upstream, per worker.")
    connect_timeout_s: float = Field(5.0, gt=0, description="Longest wait for a connection to the upstream.")
    first_token_timeout_s: float = Field(
        300.0, gt=0, description="Longest wait from the request to the first byte of a streamed answer."
    )
    stall_timeout_s: float = Field(120.0, gt=0, description="Longest silence inside an answer that has begun.")
    total_timeout_s: float = Field(1800.0, gt=0, description="Longest time a request may take in all.")
    system_role: Literal["auto", "system", "first_user"] = Field(
        "auto", description="Where a constitution goes; auto asks the upstream whether its template has a system role."
    )

    # The upstream reward model, for the selector reward_model.
    reward_upstream: str | None = Field(None, description="Base URL of a vLLM that serves a reward model.")
    reward_upstream_api_key: SecretStr | None = Field(None, description="Sent to it as a bearer token.")
    reward_model: str | None = Field(None, description="Its name there. Unset: the first that /v1/models lists.")
    reward_route: RewardRoute = Field(
        RewardRoute.AUTO, description="How it is asked: classify, pooling or score; auto tries them in this order."
    )
    reward_timeout_s: float = Field(30.0, gt=0, description="Longest wait for the rewards of a request's candidates.")

    # The embedded engine.
    model: str | None = Field(
        None, description="Model for the embedded engine: a directory or hub name. Unset: SmolLM2-135M-Instruct."
    )
    embedded_self_evaluation: bool = Field(
        True,
        description="Whether SmolLM2-135M-Instruct gets the trained self-evaluation that ships with Preamble; "
        "false: the plain checkpoint.",
    )
    engine_port: int = Field(0, ge=0, le=65535, description="Port of the embedded engine; 0 picks a free one.")
    engine_args: tuple[str, ...] = Field((), description="More arguments for the embedded vLLM, as vLLM takes them.")
    engine_start_timeout_s: float = Field(600.0, gt=0, description="Longest wait for the embedded engine to be ready.")

    # Who may call.
    auth: Literal["auto", "required", "off"] = Field(
        "auto", description="API keys: auto = required unless the proxy listens on loopback only."
    )
    admin_key: SecretStr | None = Field(None, description="An admin API key that needs no store, for automation.")
    secret: SecretStr | None = Field(
        None, description="Secret behind cache salts, at least 16 characters. Unset: made once in data_dir."
    )

    # Limits.
    max_body_bytes: int = Field(32 * 1024 * 1024, ge=1024, description="Largest request body.")
    max_principles: int = Field(64, ge=1, description="Most principles in a constitution.")
    max_principle_chars: int = Field(2000, ge=1, description="Longest text of one principle, in characters.")
    max_constitution_chars: int = Field(16000, ge=1, description="Longest constitution, principle texts together.")

    # Adaptive best-of-N.
    policy_file: InstanceOf[PolicyFile] | None = Field(
        None,
        description="JSON file with the server's default policy, in place of the setting policy; "
        "`preamble selfeval policy` writes one.",
    )
    policy: PolicyFields = Field(  # after policy_file, which gives its default
        default_factory=_policy_of_file,
        validate_default=True,
        description="Server's default policy: a TOML table, or text such as mode=adaptive,n_max=8; off without a mode.",
    )
    self_evaluation: Path | None = Field(
        None,
        description="File preamble_self_evaluation.json, or its directory. Unset: looked for beside the model.",
    )
    max_candidates: int = Field(256, ge=1, description="Most concurrent candidates, shared out among the workers.")
    max_candidates_per_user: int = Field(64, ge=1, description="The same for any one user.")
    exploration_share: float = Field(
        0.0, ge=0, le=1, description="Share of sampled requests for which full best-of-N is run afterwards, to measure."
    )
    max_explorations: int = Field(1, ge=1, description="Most of these runs at once, per worker.")
    load_low: int = Field(
        2, ge=0, description="Up to this many requests waiting upstream a policy is followed in full."
    )
    load_high: int = Field(16, ge=1, description="From this many on, each request gets one candidate.")
    load_poll_s: float = Field(1.0, gt=0, description="How often the upstream is asked for that, while sampling.")
    keep_alive_s: float = Field(5.0, gt=0, description="Between SSE comments, while no candidate is settled yet.")
    trace_ttl_s: float = Field(900.0, gt=0, description="How long the trace of a sampled request is kept.")
    max_traces: int = Field(1000, ge=1, description="Most traces kept, of all workers about.")

    # Where things are kept.
    data_dir: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("preamble", appauthor=False)),
        description="Directory of the SQLite file and the generated secret.",
    )
    cache_dir: Path = Field(
        default_factory=lambda: Path(platformdirs.user_cache_dir("preamble", appauthor=False)),
        description="Directory of the embedded model's checkpoint; may be deleted at any time.",
    )
    database_url: str | None = Field(None, description="SQLAlchemy URL of the store. Unset: SQLite in data_dir.")

    # Operation.
    shutdown_timeout_s: float = Field(30.0, ge=0, description="How long a stopping proxy lets answers finish.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe log event.")
    log_format: Literal["auto", "json", "console"] = Field("auto", description="auto: console on a terminal.")
    access_log: bool = Field(True, description="One log event per request on the proxied routes.")

    @field_validator("upstream", "reward_upstream")
    @classmethod
    def _upstream_is_a_base_url(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        try:
            sound = parts.port != 0 and re.fullmatch(r"[\w.:%-]+", parts.hostname or "")
        except ValueError:  # a port that can be none
            sound = False
        if parts.scheme not in {"http", "https"} or not sound:
            raise ValueError("must be a base URL such as http://127.0.0.1:8000")
        if parts.query or parts.fragment or parts.username:
            raise ValueError(f"must be a bare base URL; an API key goes into {info.field_name}_api_key")
        return value.rstrip("/").removesuffix("/v1")

    @field_validator("database_url")
    @classmethod
    def _database_url_names_a_database(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"[a-z][\w+]*://", value):
            raise ValueError("must be a SQLAlchemy URL such as sqlite:////var/lib/preamble/preamble.db")
        return value

    @field_validator("data_dir", "cache_dir", "self_evaluation")
    @classmethod
    def _paths_may_begin_with_a_tilde(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser()

    @field_validator("policy_file", mode="before")
    @classmethod
    def _policy_file_can_be_followed(cls, value: Any) -> Any:
        return read_policy_file(Path(value).expanduser()) if isinstance(value, str | Path) else value

    @field_serializer("policy_file")
    def _policy_file_by_its_path(self, value: PolicyFile | None) -> str | None:
        return None if value is None else str(value.path)

    @field_validator("secret", "admin_key")
    @classmethod
    def _secrets_are_long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < _SECRET_CHARS:
            raise ValueError(f"must have at least {_SECRET_CHARS} characters; `openssl rand -hex 32` makes a good one")
        return value

    @field_validator("policy")
    @classmethod
    def _policy_can_be_followed(cls, value: PolicyFields) -> PolicyFields:
        said = value if "mode" in value.model_fields_set else value.model_copy(update={"mode": Mode.OFF})
        try:
            build(said.said())
        except PolicyError as error:
            raise ValueError(str(error)) from error
        return said

    @model_validator(mode="after")
    def _load_ascends(self) -> Self:
        if self.load_low >= self.load_high:
            raise ValueError(f"load_high: is {self.load_high}; it must be more than load_low, which is {self.load_low}")
        return self

    @model_validator(mode="after")
    def _one_default_policy(self) -> Self:
        if self.policy_file is not None and "policy" in self.model_fields_set:
            raise PydanticCustomError(
                _TWO_POLICIES,
                "policy_file: the setting policy says the server's default policy too; leave one of the two out",
            )
        return self

    @model_validator(mode="after")
    def _the_selector_has_its_model(self) -> Self:
        if self.policy.selector is SelectorName.REWARD_MODEL and self.reward_upstream is None:
            name = "policy" if self.policy_file is None else "policy_file"
            raise ValueError(
                f"{name}: the selector 'reward_model' needs one; set reward_upstream to the URL of its vLLM"
            )
        return self

    @model_validator(mode="after")
    def _explorations_have_room(self) -> Self:
        if self.exploration_share and self.exploration_candidates < _FEWEST_TO_EXPLORE:
            least = _FEWEST_TO_EXPLORE * _EXPLORATIONS_ONE_IN * self.workers
            raise ValueError(
                f"max_candidates: is {self.max_candidates}; explorations get one in {_EXPLORATIONS_ONE_IN} of each "
                f"worker's part, so give at least {least}, or set exploration_share to 0"
            )
        return self

    @model_validator(mode="after")
    def _ceilings_can_be_shared_out(self) -> Self:
        for name in ("max_candidates", "max_candidates_per_user"):
            ceiling = getattr(self, name)
            if ceiling < self.workers:
                raise ValueError(
                    f"{name}: is {ceiling}; it is shared out among {self.workers} workers, each of which needs one. "
                    f"Raise it to {self.workers}, or start fewer workers"
                )
        return self

    @model_validator(mode="after")
    def _no_open_proxy(self) -> Self:
        if self.auth == "off" and not self.loopback_only:
            raise ValueError(
                f"auth: 'off' is only allowed on a loopback host, and host is {self.host!r}; "
                "use auth='required' (keys: `preamble keys create`) or host='127.0.0.1'"
            )
        return self

    @property
    def loopback_only(self) -> bool:
        """True when `host` can only be reached from this machine."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def auth_required(self) -> bool:
        """True when a request without a valid API key is refused."""
        return self.auth == "required" or (self.auth == "auto" and not self.loopback_only)

    @property
    def policy_from(self) -> str:
        """Which setting says the server's default policy, without any directory: clients are told."""
        if self.policy_file is not None:
            return f"policy_file ({self.policy_file.path.name})"
        return "policy" if "policy" in self.model_fields_set else "default"

    @property
    def worker_candidates(self) -> int:
        """Most concurrent candidates of one worker, explorations included."""
        return self.max_candidates // self.workers

    @property
    def exploration_candidates(self) -> int:
        """How many of these are set aside for explorations, so that no client ever waits for one."""
        return self.worker_candidates // _EXPLORATIONS_ONE_IN if self.exploration_share else 0

    @property
    def store_url(self) -> str:
        """SQLAlchemy URL of the store."""
        return self.database_url or f"sqlite:///{self.data_dir / 'preamble.db'}"

    def masked(self) -> dict[str, Any]:
        """Return the settings as plain values, secrets replaced by asterisks, wherever they stand."""
        values = self.model_dump(mode="json")
        if self.database_url is not None:
            values["database_url"] = _URL_PASSWORD.sub(rf"\1:{MASK}", self.database_url)
        values["policy"] = self.policy.model_dump(mode="json", exclude_unset=True)
        values["engine_args"] = mask_arguments(self.engine_args)
        return values


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """The effective settings, and where each that is not a default came from (`from --port`, `in preamble.toml`)."""

    settings: Settings
    sources: Mapping[str, str]


def load_settings(
    *,
    config: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    **options: object,
) -> Settings:
    """Return the effective settings; arguments and errors as of `load_settings_with_sources`."""
    return load_settings_with_sources(config=config, environ=environ, **options).settings


def load_settings_with_sources(
    *,
    config: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    **options: object,
) -> LoadedSettings:
    """Return the effective settings and their sources.

    `options` are command-line values; those that are None were not given. Raises `SettingsError` naming each wrong
    setting, its source and the remedy: unknown names are errors too, so that a typing mistake does not pass unseen.
    """
    values: dict[str, object] = {}
    source: dict[str, str] = {}
    path = config or (Path(environ[PREFIX + "CONFIG"]) if environ.get(PREFIX + "CONFIG") else None)
    if path is None and Path("preamble.toml").is_file():
        path = Path("preamble.toml")
    if path is not None:
        for name, value in _read_toml(path).items():
            values[name], source[name] = value, f"in {path}"
    for variable, text in environ.items():
        if text and variable.startswith(PREFIX) and variable != PREFIX + "CONFIG":
            name = variable[len(PREFIX) :].lower()
            source[name] = f"from {variable}"
            values[name] = _split(text, source[name]) if name == "engine_args" else text
    for name, option in options.items():
        if option is not None:
            source[name] = f"from --{name.replace('_', '-')}"
            is_line = name == "engine_args" and isinstance(option, str)
            values[name] = _split(str(option), source[name]) if is_line else option
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(error, source))) from error
    if settings.policy_file is not None:
        source["policy"] = f"in {settings.policy_file.path}"
    return LoadedSettings(settings, source)


def _read_toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(f"config: cannot read {path}: {error.strerror}. Give an existing TOML file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"config: {path} is not TOML: {error}. Correct the file.") from error


def _split(text: str, source: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise SettingsError(
            f"engine_args ({source}): {error}. Write the arguments as on a command line, quotes closed."
        ) from error


def mask_arguments(arguments: Sequence[str]) -> list[str]:
    """Return arguments of vLLM with the values of secret ones as asterisks."""
    masked = []
    previous = ""
    for argument in arguments:
        if _SECRET_ARGUMENT.fullmatch(previous):
            masked.append(MASK)
        elif (secret := _SECRET_ARGUMENT.match(argument)) and argument != secret[0]:
            masked.append(secret[0] + MASK)
        else:
            masked.append(argument)
        previous = argument
    return masked


def _explain(error: ValidationError, source: Mapping[str, str]) -> list[str]:
    """Return one line per wrong setting: its name, where it came from, what is wrong, what to do."""
    lines = []
    for detail in error.errors(include_url=False, include_input=False):
        if detail["type"] == _FOLLOWS_FROM_ANOTHER:
            continue
        message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if not detail["loc"]:
            # A rule over several settings names the one to change in its own words.
            name, _, message = message.partition(": ")
            if detail["type"] == _TWO_POLICIES:
                message = message.replace("policy", f"policy ({source.get('policy', 'given')})", 1)
            lines.append(f"{name} ({source.get(name, 'default')}): {message}")
            continue
        name = str(detail["loc"][0])
        where = source.get(name, "default")
        if detail["type"] == "extra_forbidden":
            lines.append(f"{name} ({where}): there is no such setting; {_remedy_for_unknown(name, where)}")
        else:
            path = ".".join(str(part) for part in detail["loc"]) if name == "policy" else name
            lines.append(f"{path} ({where}): {message}. {Settings.model_fields[name].description}")
    return lines


def _remedy_for_unknown(name: str, where: str) -> str:
    if where.startswith("from " + PREFIX) and name.startswith(("service_", "port_")):
        return "Kubernetes sets it for a Service named preamble: set enableServiceLinks: false in the pod."
    close = difflib.get_close_matches(name, Settings.model_fields, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return "`preamble serve --print-settings` lists them all."
