"""Rounds in templates."""

from django import template
from django.utils import timezone

from federation.models import Round

register = template.Library()


@register.filter
def took(item: Round) -> float:
    """Seconds from the announcement to the end, or until now."""
    return ((item.finished_at or timezone.now()) - item.started_at).total_seconds()
