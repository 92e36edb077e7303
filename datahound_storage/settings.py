"""The settings, and the only place that reads the process environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload
from urllib.parse import quote

from datahound_storage.errors import SettingsError

URL_VARIABLE = "DATAHOUND_STORAGE_URL"
PLATFORM_URL_VARIABLE = "DATABASE_URL"
SCHEMES = ("postgres", "postgresql", "postgresql+psycopg")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}")
_PARAMETER = re.compile(r"[A-Za-z_]{1,40}")
TRUE_WORDS = frozenset({"1", "true", "yes", "on"})
FALSE_WORDS = frozenset({"0", "false", "no", "off", ""})


@dataclass(frozen=True)
class Settings:
    """What the package was told from outside.

    `url` is a libpq connection URL or None, where the JSON files are the store. It is left out
    of the representation, as it may hold a password. Times are in seconds. `reattach_seconds`: how
    often a process that has fallen back tries the database again; None: not before its restart.
    """

    url: str | None = field(default=None, repr=False)
    url_variable: str = URL_VARIABLE
    timezone: str = "UTC"
    echo: bool = False
    auto_upgrade: bool = True
    operation_timeout: float = 5.0
    reattach_seconds: float | None = None
    data_dir: Path = Path("data")


def from_environment(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings; raise SettingsError where one cannot be used."""
    env = os.environ if environ is None else environ
    name = URL_VARIABLE if URL_VARIABLE in env else PLATFORM_URL_VARIABLE
    return Settings(
        url=normalize_url(env.get(name, ""), name),
        url_variable=name,
        timezone=env.get("DATAHOUND_SCHEDULER_TZ", "").strip() or "UTC",
        echo=env.get("DATAHOUND_STORAGE_ECHO", "").strip().lower() in TRUE_WORDS,
        auto_upgrade=_flag(env, "DATAHOUND_STORAGE_AUTO_UPGRADE", default=True),
        operation_timeout=_seconds(env, "DATAHOUND_STORAGE_TIMEOUT_SECONDS", default=5.0),
        reattach_seconds=_seconds(env, "DATAHOUND_STORAGE_REATTACH_SECONDS", default=None),
        data_dir=Path(env.get("DATAHOUND_DATA_DIR", "").strip() or "data"),
    )


def why_no_url(settings: Settings) -> str:
    """Why the files are the store, where there is no URL."""
    if settings.url_variable != PLATFORM_URL_VARIABLE:
        return f"{settings.url_variable} is empty"
    return f"neither {URL_VARIABLE} nor {PLATFORM_URL_VARIABLE} is set to a URL"


def normalize_url(value: str, variable: str = URL_VARIABLE) -> str | None:
    """Return `value` as a libpq URL, None where it is blank.

    Raises SettingsError, which names `variable` and never shows the value, for anything that is
    not a PostgreSQL URL for psycopg 3.
    """
    text = value.strip()
    if not text:
        return None
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.lower() not in SCHEMES:
        # What is no scheme may be a part of a password.
        is_scheme = bool(separator) and _SCHEME.fullmatch(scheme) is not None
        shown = f"scheme {scheme!r}" if is_scheme else "no scheme"
        raise SettingsError(
            f"{variable} is not a PostgreSQL URL ({shown}). "
            "Use postgresql://USER:PASSWORD@HOST:PORT/DATABASE, or set "
            f"{URL_VARIABLE} to an empty value to use the files."
        )
    url = f"postgresql://{rest}"
    _check_url(url, variable)
    return url


def _check_url(url: str, variable: str) -> None:
    # The parser's own message can quote a part of the URL, and so a password: it stays out.
    if _is_well_formed(url):
        return
    if (name := _unknown_parameter(url)) is not None:
        raise SettingsError(
            f"{variable} has the parameter {name!r}, which PostgreSQL's client does not know: "
            "check its spelling."
        )
    raise SettingsError(
        f"{variable} is malformed: check the port, and write special characters in the user "
        "name and the password percent-encoded (@ as %40, / as %2F, : as %3A)."
    )


def _is_well_formed(url: str) -> bool:
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        parts = conninfo_to_dict(url)
    except (ProgrammingError, UnicodeError):
        return False
    ports = str(parts.get("port") or "")
    # An @ after the first one, or after a slash, is in a password that was not encoded.
    path = url.partition("://")[2].partition("?")[0].partition("/")[2]
    has_password_elsewhere = "@" in str(parts.get("host") or "") + path
    return all(p.isdecimal() for p in ports.split(",") if p) and not has_password_elsewhere


def _unknown_parameter(url: str) -> str | None:
    """The parameter that makes a URL unusable; None unless it is certain to be no password."""
    from psycopg.pq import Conninfo

    rest, _, query = url.partition("?")
    if "@" in query or not _is_well_formed(rest):
        return None
    known = {option.keyword.decode() for option in Conninfo.get_defaults()} | {"ssl"}
    names = [pair.partition("=")[0] for pair in query.split("&")]
    unknown = [name for name in names if name not in known and _PARAMETER.fullmatch(name)]
    return unknown[0] if unknown else None


def describe_url(url: str) -> str:
    """Where a URL leads, for messages: host, port and database, without user or password."""
    from psycopg.conninfo import conninfo_to_dict

    parts = conninfo_to_dict(url)
    host = str(parts.get("host") or parts.get("hostaddr") or "the local socket")
    port = f":{parts['port']}" if parts.get("port") and not host.startswith("/") else ""
    return f"{host}{port}/{quote(str(parts.get('dbname') or ''), safe='')}"


def _flag(env: Mapping[str, str], name: str, *, default: bool) -> bool:
    word = env.get(name, "").strip().lower()
    if name not in env:
        return default
    if word in TRUE_WORDS or word in FALSE_WORDS:
        return word in TRUE_WORDS
    raise SettingsError(f"{name} must be 1/true/yes/on or 0/false/no/off, not {word[:40]!r}.")


@overload
def _seconds(env: Mapping[str, str], name: str, *, default: float) -> float: ...
@overload
def _seconds(env: Mapping[str, str], name: str, *, default: None) -> float | None: ...
def _seconds(env: Mapping[str, str], name: str, *, default: float | None) -> float | None:
    text = env.get(name, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.1 <= value <= 3600:
        raise SettingsError(f"{name} must be a number of seconds from 0.1 to 3600.")
    return value
