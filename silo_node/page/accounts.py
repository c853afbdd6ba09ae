"""FOLDER/page.db: who may sign in at the node's page, their sessions, and the pause that follows wrong passwords.

A password is kept as scrypt with its own salt, a session as the SHA-256 of a random token that only the browser holds.
A new password, another role or the end of an account ends its sessions.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, cast

from silo_node.config import NAME
from silo_node.errors import Refused, UsageError
from silo_node.service.migrations import Step, migrate

Role = Literal["it", "steward"]
ROLES: Final = ("it", "steward")
SESSION_SECONDS: Final = 8 * 3600
LEAST_PASSWORD: Final = 12
"""Characters."""
MOST_PASSWORD: Final = 1024
FREE_TRIES: Final = 5
"""Wrong passwords before the first pause; each further one doubles it."""
FIRST_PAUSE: Final = 5.0
LONGEST_PAUSE: Final = 900.0
FORGIVEN: Final = 24 * 3600.0
"""Seconds after which wrong passwords are forgotten."""
_SCRYPT: Final = {"n": 1 << 15, "r": 8, "p": 1, "maxmem": 64 << 20, "dklen": 32}
_ONE_AT_A_TIME: Final = threading.Lock()
"""32 MB and a tenth of a second a guess: guesses wait for each other, and can't take the silo's memory."""
STEPS: Final[tuple[Step, ...]] = (
    (
        """CREATE TABLE IF NOT EXISTS users(
 name TEXT PRIMARY KEY, role TEXT NOT NULL, person TEXT NOT NULL, salt BLOB NOT NULL, hash BLOB NOT NULL) WITHOUT ROWID""",
        """CREATE TABLE IF NOT EXISTS sessions(
 token BLOB PRIMARY KEY, name TEXT NOT NULL, form TEXT NOT NULL, ends REAL NOT NULL) WITHOUT ROWID""",
        "CREATE TABLE IF NOT EXISTS failures(bucket INTEGER PRIMARY KEY, times INTEGER NOT NULL, until REAL NOT NULL)",
    ),
)


@dataclass(frozen=True)
class User:
    """name: as typed at sign-in. person: as in trust.json, for a steward; empty for hospital IT."""

    name: str
    role: Role
    person: str


@dataclass(frozen=True)
class Session:
    """A signed-in user. form: the token that each of this session's forms must carry."""

    user: User
    form: str


class Accounts:
    """Shared by the page and `silo page user`. Safe to use from several threads. clock: seconds since 1970.

    Raises: UpgradeNeeded, where newer software wrote page.db.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        path = folder / "page.db"
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        self._clock = clock
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
        try:
            migrate(self._db, STEPS)
            self._db.execute("PRAGMA journal_mode = WAL")
        except BaseException:
            self._db.close()
            raise

    def users(self) -> list[User]:
        """Everybody, by name."""
        with self._lock:
            rows = self._db.execute("SELECT name, role, person FROM users ORDER BY name").fetchall()
        return [User(name, role, person) for name, role, person in rows]

    def add(self, name: str, *, role: str, person: str, password: str) -> User:
        """A new account. Raises: UsageError."""
        self.check_new(name, role=role, person=person)
        salt, hashed = _hashed(_long_enough(password))
        with self._lock:
            try:
                self._db.execute("INSERT INTO users VALUES (?, ?, ?, ?, ?)", (name, role, person, salt, hashed))
            except sqlite3.IntegrityError:
                raise _there_already(name) from None
        return User(name, cast(Role, role), person)

    def check_new(self, name: str, *, role: str, person: str) -> None:
        """Whether such an account can be made. Raises: UsageError."""
        if not NAME.fullmatch(name):
            raise UsageError(
                "a user's name is 1 to 63 of a-z, 0-9, - and _, starting and ending with a letter or digit"
            )
        if role not in ROLES:
            raise UsageError(f"the role must be one of {', '.join(ROLES)}")
        if (role == "steward") != bool(person):
            raise UsageError(
                "a steward needs --person, the name that stands in trust.json"
                if role == "steward"
                else "--person is for stewards only"
            )
        if any(user.name == name for user in self.users()):
            raise _there_already(name)

    def check_there(self, name: str) -> None:
        """Raises: UsageError where there is no such user."""
        if all(user.name != name for user in self.users()):
            raise _nobody(name)

    def remove(self, name: str) -> None:
        """End an account and its sessions. Raises: UsageError."""
        with self._lock:
            self._end_sessions(name)
            if not self._db.execute("DELETE FROM users WHERE name = ?", (name,)).rowcount:
                raise _nobody(name)

    def set_password(self, name: str, password: str) -> None:
        """Another password: all sessions end, and wrong tries are forgotten. Raises: UsageError."""
        salt, hashed = _hashed(_long_enough(password))
        with self._lock:
            changed = self._db.execute("UPDATE users SET salt = ?, hash = ? WHERE name = ?", (salt, hashed, name))
            if not changed.rowcount:
                raise _nobody(name)
            self._end_sessions(name)
            self._db.execute("DELETE FROM failures WHERE bucket = ?", (_bucket(name),))

    def sign_in(self, name: str, password: str) -> str:
        """A new session's token, for the cookie. Raises: Refused (SIGN_IN_PAUSED, SIGN_IN_WRONG)."""
        self.check_password(name, password)
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._db.execute("DELETE FROM sessions WHERE ends < ?", (self._clock(),))
            self._db.execute(
                "INSERT INTO sessions VALUES (?, ?, ?, ?)",
                (_digest(token), name, secrets.token_urlsafe(32), self._clock() + SESSION_SECONDS),
            )
        return token

    def check_password(self, name: str, password: str) -> None:
        """Whether it is this user's; an unknown name takes as long and is answered alike.

        Raises: Refused (SIGN_IN_PAUSED, SIGN_IN_WRONG).
        """
        bucket = _bucket(name)
        with _ONE_AT_A_TIME:
            now = self._clock()
            with self._lock:
                times, until = self._db.execute(
                    "SELECT times, until FROM failures WHERE bucket = ?", (bucket,)
                ).fetchone() or (0, 0.0)
                found = self._db.execute("SELECT salt, hash FROM users WHERE name = ?", (name,)).fetchone()
            if now < until:
                raise Refused(
                    "SIGN_IN_PAUSED",
                    f"Too many wrong passwords: try again in {_seconds(until - now)}. Hospital IT can end the pause with "
                    "`silo page user password`.",
                )
            if now > until + FORGIVEN:
                times = 0
            salt, wanted = found or (b"\0" * 16, b"")
            given = _scrypt(password[: MOST_PASSWORD + 1], salt)
            if found is not None and hmac.compare_digest(given, wanted):
                with self._lock:
                    self._db.execute("DELETE FROM failures WHERE bucket = ?", (bucket,))
                return
            pause = 0.0 if times + 1 < FREE_TRIES else min(FIRST_PAUSE * 2.0 ** (times + 1 - FREE_TRIES), LONGEST_PAUSE)
            with self._lock:
                self._db.execute(
                    "INSERT INTO failures VALUES (?, ?, ?) ON CONFLICT(bucket) DO UPDATE SET times = excluded.times,"
                    " until = excluded.until",
                    (bucket, min(times + 1, 64), now + pause),
                )
        raise Refused("SIGN_IN_WRONG", "Name and password do not fit together.")

    def session(self, token: str) -> Session | None:
        """The session of a cookie; None where it is over, or its account is."""
        with self._lock:
            row = self._db.execute(
                "SELECT users.name, role, person, form FROM sessions JOIN users USING (name)"
                " WHERE token = ? AND ends > ?",
                (_digest(token), self._clock()),
            ).fetchone()
        return Session(User(*row[:3]), row[3]) if row is not None else None

    def sign_out(self, token: str) -> None:
        """End one session."""
        with self._lock:
            self._db.execute("DELETE FROM sessions WHERE token = ?", (_digest(token),))

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._db.close()

    def _end_sessions(self, name: str) -> None:
        self._db.execute("DELETE FROM sessions WHERE name = ?", (name,))


def _there_already(name: str) -> UsageError:
    return UsageError(f"there is a user {name} already: `silo page user password {name}` sets a new password")


def _nobody(name: str) -> UsageError:
    return UsageError(f"there is no user {name}: `silo page user list` names them")


def _long_enough(password: str) -> str:
    if len(password) < LEAST_PASSWORD:
        raise UsageError(f"a password has at least {LEAST_PASSWORD} characters")
    if len(password) > MOST_PASSWORD:
        raise UsageError(f"a password has at most {MOST_PASSWORD} characters")
    return password


def _hashed(password: str) -> tuple[bytes, bytes]:
    salt = secrets.token_bytes(16)
    with _ONE_AT_A_TIME:
        return salt, _scrypt(password, salt)


def _scrypt(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode("utf-8", "surrogatepass"), salt=salt, **_SCRYPT)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _bucket(name: str) -> int:
    """Wrong tries are counted by a short hash: also for names that do not exist, and never more than 65,536 rows."""
    return int.from_bytes(_digest(name)[:2], "big")


def _seconds(value: float) -> str:
    return f"{value:.0f} seconds" if value < 120 else f"{value / 60:.0f} minutes"
