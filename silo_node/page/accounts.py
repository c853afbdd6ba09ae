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
MANY_WRONG: Final = 30.0
"""Wrong passwords, whatever the names, after which every try takes longer until they are forgotten."""
FORGET_ONE: Final = 10.0
"""Seconds in which one of those is forgotten."""
SLOWER: Final = 1.0
"""Seconds longer."""
NOTED: Final = 0.5
"""Seconds that the answer takes, after the hash, with which a pause begins; longer than to note it in the silo's log."""
MOST_AT_ONCE: Final = 8
"""Tries that wait for their turn; the page has threads for the other pages then."""
UNKNOWN_BYTES: Final = 2
"""Of the digest by which wrong tries of a name without an account are counted: never more than 65,536 of those."""
STEPS: Final[tuple[Step, ...]] = (
    (
        "CREATE TABLE IF NOT EXISTS users("
        " name TEXT PRIMARY KEY, role TEXT NOT NULL, person TEXT NOT NULL, salt BLOB NOT NULL, hash BLOB NOT NULL)"
        " WITHOUT ROWID",
        "CREATE TABLE IF NOT EXISTS sessions("
        " token BLOB PRIMARY KEY, name TEXT NOT NULL, form TEXT NOT NULL, ends REAL NOT NULL) WITHOUT ROWID",
        "CREATE TABLE IF NOT EXISTS failures(bucket INTEGER PRIMARY KEY, times INTEGER NOT NULL, until REAL NOT NULL)",
    ),
    (
        "ALTER TABLE users ADD COLUMN id TEXT NOT NULL DEFAULT ''",
        "UPDATE users SET id = lower(hex(randomblob(8)))",
        "DROP TABLE failures",
        "CREATE TABLE tries(who BLOB PRIMARY KEY, times INTEGER NOT NULL, until REAL NOT NULL) WITHOUT ROWID",
    ),
)
"""Its format, step by step (migrations.py)."""


@dataclass(frozen=True)
class User:
    """name: as typed at sign-in. person: as in trust.json, for a steward; empty for hospital IT. id: random, for the log."""

    name: str
    role: Role
    person: str
    id: str = ""


@dataclass(frozen=True)
class Session:
    """A signed-in user. form: the token that each of this session's forms must carry."""

    user: User
    form: str


@dataclass(frozen=True)
class Event:
    """What the silo's log is told (entries.py). user: None for all. by: None for who is at this machine's terminal."""

    kind: str
    user: User | None
    by: User | None = None
    change: str = ""


class Accounts:
    """Shared by the page and `silo page user`. Safe to use from several threads.

    clock: seconds since 1970. wait: sleeps. note: told of each event before it takes effect; what it raises prevents it.

    Raises: UpgradeNeeded, where newer software wrote page.db.
    """

    def __init__(
        self,
        folder: Path,
        *,
        clock: Callable[[], float] = time.time,
        wait: Callable[[float], None] = time.sleep,
        note: Callable[[Event], None] = lambda event: None,
    ) -> None:
        path = folder / "page.db"
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        self._clock, self._wait, self._note = clock, wait, note
        self._turns = threading.BoundedSemaphore(MOST_AT_ONCE)
        self._wrong, self._wrong_at, self._slow = 0.0, clock(), False
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
            rows = self._db.execute("SELECT name, role, person, id FROM users ORDER BY name").fetchall()
        return [User(*row) for row in rows]

    def add(self, name: str, *, role: str, person: str, password: str) -> User:
        """A new account. Raises: UsageError."""
        self.check_new(name, role=role, person=person)
        salt, hashed = _hashed(_long_enough(password))
        user = User(name, cast(Role, role), person, secrets.token_hex(8))
        self._note(Event("role.changed", user, change="added"))
        with self._lock:
            try:
                self._db.execute(
                    "INSERT INTO users(name, role, person, salt, hash, id) VALUES (?, ?, ?, ?, ?, ?)",
                    (name, role, person, salt, hashed, user.id),
                )
            except sqlite3.IntegrityError:
                raise _there_already(name) from None
        return user

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

    def known(self, name: str) -> User:
        """The user of this name. Raises: UsageError where there is none."""
        for user in self.users():
            if user.name == name:
                return user
        raise UsageError(f"there is no user {name}: `silo page user list` names them")

    def remove(self, name: str) -> None:
        """End an account and its sessions. Raises: UsageError."""
        self._note(Event("role.changed", self.known(name), change="removed"))
        with self._lock:
            self._end_sessions(name)
            self._db.execute("DELETE FROM users WHERE name = ?", (name,))
            self._db.execute("DELETE FROM tries WHERE who = ?", (_digest(name),))

    def set_password(self, name: str, password: str, *, by: User | None = None) -> None:
        """Another password: all sessions end, and wrong tries are forgotten. Raises: UsageError."""
        user = self.known(name)
        salt, hashed = _hashed(_long_enough(password))
        self._note(Event("role.changed", user, by, "password"))
        with self._lock:
            self._db.execute("UPDATE users SET salt = ?, hash = ? WHERE name = ?", (salt, hashed, name))
            self._end_sessions(name)
            self._db.execute("DELETE FROM tries WHERE who = ?", (_digest(name),))

    def sign_in(self, name: str, password: str) -> str:
        """A new session's token, for the cookie. Raises: Refused (SIGN_IN_PAUSED, SIGN_IN_WRONG, SIGN_IN_BUSY)."""
        user = self.check_password(name, password)
        token = secrets.token_urlsafe(32)
        self._note(Event("auth.login", user, user))
        with self._lock:
            self._db.execute("DELETE FROM sessions WHERE ends < ?", (self._clock(),))
            self._db.execute(
                "INSERT INTO sessions VALUES (?, ?, ?, ?)",
                (_digest(token), name, secrets.token_urlsafe(32), self._clock() + SESSION_SECONDS),
            )
        return token

    def check_password(self, name: str, password: str) -> User:
        """Whose it is. An unknown name, and one that pauses, take as long: a password is hashed in each case, in one's turn.
        One account's pause is no other's.

        Raises: Refused (SIGN_IN_PAUSED, SIGN_IN_WRONG, SIGN_IN_BUSY).
        """
        if not self._turns.acquire(blocking=False):
            raise Refused("SIGN_IN_BUSY", "Too many are signing in at this moment: try again in a few seconds.")
        try:
            with _ONE_AT_A_TIME:
                return self._checked(name, password)
        finally:
            self._turns.release()

    def _checked(self, name: str, password: str) -> User:
        who, user, times, left = self._tries(name)
        if self._slowed():
            self._wait(SLOWER)
        with self._lock:
            found = self._db.execute("SELECT salt, hash FROM users WHERE name = ?", (name,)).fetchone()
        salt, wanted = found or (b"\0" * 16, b"")
        given = _scrypt(password[: MOST_PASSWORD + 1], salt)
        if left > 0:
            raise Refused(
                "SIGN_IN_PAUSED",
                f"Too many wrong passwords: try again in {_seconds(left)}. Hospital IT can end the pause with "
                "`silo page user password`.",
            )
        hashed = time.monotonic()
        if user is not None and found is not None and hmac.compare_digest(given, wanted):
            with self._lock:
                self._db.execute("DELETE FROM tries WHERE who = ?", (who,))
            return user
        pause = 0.0 if times + 1 < FREE_TRIES else min(FIRST_PAUSE * 2.0 ** (times + 1 - FREE_TRIES), LONGEST_PAUSE)
        with self._lock:
            self._db.execute(
                "INSERT INTO tries VALUES (?, ?, ?) ON CONFLICT(who) DO UPDATE SET times = excluded.times,"
                " until = excluded.until",
                (who, min(times + 1, 64), self._clock() + pause),
            )
        self._wrong += 1
        if not self._slow and self._wrong > MANY_WRONG:
            self._slow = True
            self._note(Event("auth.failed", None))
        if pause and user is not None:
            self._note(Event("auth.failed", user))
        if pause:
            # Only an account's pause is noted, which takes its time: the answer must not tell by it that there is one.
            self._wait(max(0.0, NOTED - (time.monotonic() - hashed)))
        raise Refused("SIGN_IN_WRONG", "Name and password do not fit together.")

    def _tries(self, name: str) -> tuple[bytes, User | None, int, float]:
        """(what wrong tries are counted by, the account, how many there were, seconds of its pause that are left)."""
        now = self._clock()
        with self._lock:
            row = self._db.execute("SELECT name, role, person, id FROM users WHERE name = ?", (name,)).fetchone()
            who = _digest(name)[: None if row else UNKNOWN_BYTES]
            found = self._db.execute("SELECT times, until FROM tries WHERE who = ?", (who,)).fetchone()
        times, until = found or (0, 0.0)
        return who, User(*row) if row else None, 0 if now > until + FORGIVEN else times, until - now

    def _slowed(self) -> bool:
        """Whether every try takes longer: from many wrong ones on until all are forgotten. In one's turn only."""
        now = self._clock()
        self._wrong = max(0.0, self._wrong - max(0.0, now - self._wrong_at) / FORGET_ONE)
        self._wrong_at = now
        self._slow = self._slow and self._wrong > 0
        return self._slow

    def session(self, token: str) -> Session | None:
        """The session of a cookie; None where it is over, or its account is."""
        with self._lock:
            row = self._db.execute(
                "SELECT users.name, role, person, id, form FROM sessions JOIN users USING (name)"
                " WHERE token = ? AND ends > ?",
                (_digest(token), self._clock()),
            ).fetchone()
        return Session(User(*row[:4]), row[4]) if row is not None else None

    def sign_out(self, token: str) -> None:
        """End one session."""
        session = self.session(token)
        if session is not None:
            self._note(Event("auth.logout", session.user, session.user))
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


def _seconds(value: float) -> str:
    return f"{value:.0f} seconds" if value < 120 else f"{value / 60:.0f} minutes"
