"""A person in front of the portal: signs in, opens pages, fills in forms. Plain HTTP, as a browser would send it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
import time
from collections.abc import Mapping
from html.parser import HTMLParser

import httpx


class PageError(RuntimeError):
    """A page did not answer as a person would expect; the message carries what the page said."""


def totp(secret: str, at: float | None = None) -> str:
    """The six digits that an authenticator shows for a base32 secret (RFC 6238, SHA-1, 30 s)."""
    key = base64.b32decode(secret + "=" * (-len(secret) % 8))
    counter = int((time.time() if at is None else at) // 30)
    mac = hmac.new(key, struct.pack(">Q", counter), hashlib.sha1).digest()
    start = mac[-1] & 15
    return f"{(struct.unpack('>I', mac[start : start + 4])[0] & 0x7FFFFFFF) % 1_000_000:06d}"


class _Page(HTMLParser):
    """Collects the hidden fields and preset values of each form, the words, and the text of elements with an id."""

    def __init__(self) -> None:
        super().__init__()
        self.forms: list[dict[str, object]] = []
        self.values: dict[str, str] = {}
        self.words: list[str] = []
        self._form: dict[str, object] | None = None
        self._area: str | None = None
        self._select: str | None = None
        self._id: str | None = None

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attributes}
        if tag == "form":
            self._form = {"action": found.get("action", ""), "method": found.get("method", "get").lower(), "fields": {}}
            self.forms.append(self._form)
        self._id = found.get("id")
        if self._form is None:
            return
        fields = self._form["fields"]
        assert isinstance(fields, dict)
        if tag == "input" and found.get("name"):
            if found.get("type") in ("checkbox", "radio") and "checked" not in found:
                return
            if found.get("type") != "submit":
                fields[found["name"]] = found.get("value", "")
        elif tag == "textarea" and found.get("name"):
            self._area = found["name"]
            fields[self._area] = ""
        elif tag == "select" and found.get("name"):
            self._select = found["name"]
        elif tag == "option" and self._select and ("selected" in found or self._select not in fields):
            fields[self._select] = found.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        self._id = None
        if tag == "form":
            self._form = None
        elif tag == "textarea":
            self._area = None
        elif tag == "select":
            self._select = None

    def handle_data(self, data: str) -> None:
        if self._area and self._form is not None:
            fields = self._form["fields"]
            assert isinstance(fields, dict)
            fields[self._area] += data
        elif data.strip():
            self.words.append(data.strip())
        if self._id:
            self.values[self._id] = self.values.get(self._id, "") + data


class Person:
    """One signed-in browser session at `base`."""

    def __init__(self, base: str, user: str, password: str, totp_secret: str | None = None) -> None:
        self.user = user
        self._password = password
        self._totp_secret = totp_secret
        self._http = httpx.Client(base_url=base, follow_redirects=True, timeout=60, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def get(self, path: str) -> httpx.Response:
        answer = self._http.get(path)
        if answer.status_code != 200:
            raise PageError(f"{self.user} opened {path}: {answer.status_code}\n{_words(answer)}")
        return answer

    def json(self, path: str) -> dict[str, object]:
        result = self.get(path).json()
        assert isinstance(result, dict)
        return result

    def sign_in(self) -> None:
        """The real login page; then the second factor where the account has one."""
        answer = self.submit("/account/login/", {"login": self.user, "password": self._password})
        if self._totp_secret is not None and "code" in _fields(answer):
            answer = self._post(answer, {"code": totp(self._totp_secret)})
        if "/account/" in answer.url.path:
            raise PageError(f"{self.user} could not sign in:\n{_words(answer)}")

    def submit(self, path: str, fields: Mapping[str, object], *, to: str | None = None) -> httpx.Response:
        """Opens `path`, fills in the form that has all of `fields` and goes to `to` (to the page itself), and sends it."""
        return self._post(self.get(path), fields, to)

    def _post(self, page: httpx.Response, fields: Mapping[str, object], to: str | None = None) -> httpx.Response:
        for form in _parse(page).forms:
            names = form["fields"]
            assert isinstance(names, dict)
            # Every page has other forms in its header, such as "sign out".
            own = form["action"] == to if to else form["action"] in ("", page.url.path)
            if own and form["method"] == "post" and set(fields) <= set(names):
                target = to or page.url.raw_path.decode()
                answer = self._http.post(target, data={**names, **fields}, headers={"Referer": str(page.url)})
                if answer.status_code != 200:
                    raise PageError(f"{self.user} sent {target}: {answer.status_code}\n{_words(answer)}")
                return answer
        raise PageError(f"{self.user} finds no form with {sorted(fields)} on {page.url.path}:\n{_words(page)}")


def values(answer: httpx.Response) -> dict[str, str]:
    """What a page shows for copying: the text of every element that has an id."""
    return _parse(answer).values


def _parse(answer: httpx.Response) -> _Page:
    page = _Page()
    page.feed(answer.text)
    return page


def _fields(answer: httpx.Response) -> set[str]:
    return {name for form in _parse(answer).forms for name in form["fields"]}  # type: ignore[attr-defined]


def _words(answer: httpx.Response) -> str:
    return "\n".join(_parse(answer).words)[:3000]
