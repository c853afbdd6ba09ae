"""How allauth is fitted to a portal where accounts are given, not taken."""

from __future__ import annotations

import base64
import hashlib

from allauth.account.adapter import DefaultAccountAdapter
from allauth.mfa.adapter import DefaultMFAAdapter
from cryptography.fernet import Fernet
from django.conf import settings
from django.http import HttpRequest


class AccountAdapter(DefaultAccountAdapter):
    """Nobody signs up: the network's admin makes accounts."""

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        """Never."""
        return False


class MFAAdapter(DefaultMFAAdapter):
    """TOTP seeds and recovery codes are encrypted in the database, under a key derived from Django's secret key."""

    def encrypt(self, text: str) -> str:
        """Fernet token of `text`."""
        return _cipher().encrypt(text.encode()).decode("ascii")

    def decrypt(self, encrypted_text: str) -> str:
        """Raises cryptography.fernet.InvalidToken where the secret key is another one."""
        return _cipher().decrypt(encrypted_text.encode("ascii")).decode()

    def get_totp_label(self, user) -> str:
        """What an authenticator app shows beside the issuer."""
        return user.get_username()


def _cipher() -> Fernet:
    key = hashlib.sha256(b"consilium/mfa/v1\n" + settings.SECRET_KEY.encode()).digest()
    return Fernet(base64.urlsafe_b64encode(key))
