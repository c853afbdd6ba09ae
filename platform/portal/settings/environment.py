"""Reading settings from the environment: each reader checks its value and says what to do when it is wrong."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

_ORIGIN = re.compile(r"[a-z0-9][a-z0-9.\-]*(:[0-9]+)?(/[a-z0-9._\-]+)*")
_BROKERS = ("redis", "rediss", "redis+socket", "memory")


def text(name: str, default: str | None = None) -> str:
    """Environment variable `name`, or the content of the file that `name`_FILE names (for secrets).

    Raises ImproperlyConfigured where neither is set and there is no default, where both are, or the file can't be read.
    """
    value = os.environ.get(name, "").strip()
    file = os.environ.get(f"{name}_FILE", "").strip()
    if value and file:
        raise ImproperlyConfigured(f"{name} and {name}_FILE are both set. Keep one of them.")
    if file:
        try:
            value = Path(file).read_text().strip()
        except OSError as error:
            raise ImproperlyConfigured(f"{name}_FILE={file} can't be read: {error.strerror}.") from error
    value = value or default
    if value is None:
        raise ImproperlyConfigured(f"{name} is not set. Set it in the environment of every portal process.")
    return value


def flag(name: str, default: bool = False) -> bool:
    """Environment variable as yes or no; anything but 1/true/yes/on and 0/false/no/off raises."""
    value = os.environ.get(name, "").strip().lower()
    if not value:
        return default
    if value in ("1", "true", "yes", "on"):
        return True
    if value in ("0", "false", "no", "off"):
        return False
    raise ImproperlyConfigured(f"{name} must be 1 or 0, not {value!r}.")


def number(name: str, default: int) -> int:
    """Environment variable as a whole number from 0 to 99."""
    value = os.environ.get(name, "").strip()
    if not value:
        return default
    if value.isascii() and value.isdigit() and len(value) <= 2:
        return int(value)
    raise ImproperlyConfigured(f"{name} must be a whole number from 0 to 99, not {value!r}.")


def words(name: str, default: str = "") -> list[str]:
    """A list of words separated by commas."""
    return [word.strip() for word in os.environ.get(name, default).split(",") if word.strip()]


def home(default: Path | None = None) -> Path:
    """CONSILIUM_HOME as an absolute folder that exists (made with mode 0700); raises where it can't be used."""
    folder = Path(text("CONSILIUM_HOME", str(default) if default else None)).expanduser().resolve()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ImproperlyConfigured(f"CONSILIUM_HOME={folder} can't be made: {error.strerror}.") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ImproperlyConfigured(f"CONSILIUM_HOME={folder} is not writable for this user.")
    return folder


def log_origin() -> str:
    """CONSILIUM_NAME: the evidence log's origin, without spaces and '+', such as `portal.example.org/audit`."""
    value = text("CONSILIUM_NAME", "localhost/consilium")
    if not _ORIGIN.fullmatch(value):
        raise ImproperlyConfigured(
            f"CONSILIUM_NAME={value!r} is no log origin; use a host and a path in lower case, "
            "such as portal.example.org/audit."
        )
    return value


def secret_key(default: Path | None = None) -> str:
    """Django's secret key from the file CONSILIUM_SECRET_KEY_FILE (at least 50 characters).

    With `default` (demo and tests) a missing file is made there with mode 0600; two processes that start at once agree
    on one key because the file appears by a hard link. Raises ImproperlyConfigured otherwise.
    """
    path = Path(text("CONSILIUM_SECRET_KEY_FILE", str(default) if default else None))
    if default is not None and not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(48))
        try:
            os.link(draft, path)
        except FileExistsError:
            pass  # another process was first; its key counts
        finally:
            draft.unlink()
    try:
        value = path.read_text().strip()
    except OSError as error:
        raise ImproperlyConfigured(
            f"CONSILIUM_SECRET_KEY_FILE={path} can't be read ({error.strerror}). "
            "Make it with: openssl rand -base64 48 > FILE; chmod 600 FILE."
        ) from error
    if len(value) < 50:
        raise ImproperlyConfigured(f"CONSILIUM_SECRET_KEY_FILE={path} holds fewer than 50 characters.")
    return value


def database(url: str, *, synchronous: str) -> dict[str, Any]:
    """DATABASE_URL as Django's settings: `sqlite:///abs/path` or `postgresql://user:password@host:port/name?option=..`.

    SQLite runs in WAL mode, its transactions begin IMMEDIATE (a deferred one that writes later fails at once when
    another writer was first), and a writer waits up to 30 s for the lock. `synchronous`: FULL keeps each commit through a power
    cut, NORMAL through a crash of the process only.
    """
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        path = unquote(parts.path)
        if not path.startswith("/") or path == "/":
            raise ImproperlyConfigured("DATABASE_URL for SQLite must be sqlite:/// followed by an absolute path.")
        pragmas = f"PRAGMA journal_mode=WAL; PRAGMA synchronous={synchronous}; PRAGMA foreign_keys=ON;"
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": path,
            "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 30, "init_command": pragmas},
        }
    if parts.scheme in ("postgresql", "postgres"):
        name = unquote(parts.path.lstrip("/"))
        if not name:
            raise ImproperlyConfigured("DATABASE_URL for PostgreSQL names no database: postgresql://user@host/NAME.")
        options = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": name,
            "USER": unquote(parts.username or ""),
            "PASSWORD": unquote(parts.password or ""),
            "HOST": unquote(parts.hostname or options.pop("host", "")),
            "PORT": str(parts.port or ""),
            "OPTIONS": options,
        }
    raise ImproperlyConfigured("DATABASE_URL must begin with sqlite:/// or postgresql://.")


def broker(url: str) -> str:
    """BROKER_URL, checked: redis://, rediss://, redis+socket:///path?virtual_host=0 (or memory:// in tests)."""
    if urlsplit(url).scheme not in _BROKERS:
        raise ImproperlyConfigured(
            "BROKER_URL must begin with redis://, rediss:// or redis+socket:// (embedded Valkey: "
            "redis+socket:///path/v.sock?virtual_host=0)."
        )
    return url


def redis_address(broker_url: str) -> str | None:
    """The broker's address as redis-py wants it (`unix:///path?db=0`), or None for memory://."""
    parts = urlsplit(broker_url)
    if parts.scheme == "memory":
        return None
    if parts.scheme == "redis+socket":
        number = parse_qs(parts.query).get("virtual_host", ["0"])[-1]
        return f"unix://{parts.path}?db={number}"
    return broker_url
