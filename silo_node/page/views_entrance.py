"""Signing in and out, and a new password of one's own."""

from __future__ import annotations

from silo_node.errors import Refused, UsageError
from silo_node.page.asking import Answer, Ask, Sent, Shown


def ask(asked: Ask) -> Answer:
    """The sign-in form; who is signed in already goes on."""
    if asked.session is not None:
        return Sent("/")
    return _form(asked, "")


def sign_in(asked: Ask) -> Answer:
    """A new session, or the same form with the reason."""
    try:
        token = asked.accounts.sign_in(asked.form.get("name", "").strip(), asked.form.get("password", ""))
    except Refused as error:
        return _form(asked, error.sentence, status=403 if error.code == "SIGN_IN_WRONG" else 429)
    if asked.token:
        asked.accounts.sign_out(asked.token)
    return Sent(_ours(asked.form.get("then", "")), cookie=token)


def sign_out(asked: Ask) -> Answer:
    """The session ends here and in the browser."""
    asked.accounts.sign_out(asked.token)
    return Sent("/sign-in", cookie="")


def password(asked: Ask) -> Answer:
    """The form for a new password."""
    return Shown("password.html", {"error": ""})


def set_password(asked: Ask) -> Answer:
    """Set it; every session of this user ends, this one too."""
    name, new = asked.user.name, asked.form.get("new", "")
    try:
        if new != asked.form.get("again", ""):
            raise UsageError("The two new passwords differ.")
        asked.accounts.check_password(name, asked.form.get("old", ""))
        asked.accounts.set_password(name, new, by=asked.user)
    except (Refused, UsageError) as error:
        return Shown("password.html", {"error": error.sentence}, 403)
    return Sent("/sign-in", cookie="")


def _form(asked: Ask, error: str, status: int = 200) -> Answer:
    values = {
        "error": error,
        "name": asked.form.get("name", ""),
        "then": _ours(asked.form.get("then") or asked.query.get("then", "")),
        "nobody": not asked.accounts.users(),
    }
    return Shown("sign_in.html", values, status)


def _ours(address: str) -> str:
    """Where to go on: a path of this page, never another host."""
    plain = address.isascii() and address.isprintable() and "\\" not in address
    return address if plain and address.startswith("/") and not address.startswith("//") else "/"
