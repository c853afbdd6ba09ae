"""Django's and allauth's signals about sign-ins, handed to the services."""

from __future__ import annotations

from typing import Any

from allauth.account.authentication import get_authentication_records
from django.contrib.auth.signals import user_logged_in, user_login_failed
from django.dispatch import receiver
from django.http import HttpRequest

from organisations.models import User
from organisations.services import login_failed_record, login_record


@receiver(user_logged_in)
def _logged_in(sender: Any, request: HttpRequest | None, user: User, **kwargs: Any) -> None:
    records = get_authentication_records(request, user) if request is not None and hasattr(request, "session") else []
    login_record(user=user, second_factor=any(item.get("method") == "mfa" for item in records))


@receiver(user_login_failed)
def _login_failed(sender: Any, credentials: dict[str, Any], **kwargs: Any) -> None:
    name = credentials.get("username") or credentials.get("email") or ""
    user = User.objects.filter(username__iexact=name).first() or (
        User.objects.filter(email__iexact=name).first() if "@" in name else None
    )
    login_failed_record(user=user)
