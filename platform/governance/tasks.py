"""Celery tasks of governance."""

from celery import shared_task

from governance.models import Study
from governance.services import study_expire
from governance.states import OPEN


@shared_task(name="governance.expire")
def expire_studies() -> int:
    """End studies whose last day has passed; how many. Every minute by beat."""
    return sum(study_expire(study=study) for study in Study.objects.filter(state__in={*OPEN, "submitted"}))
