"""The portal's Celery application: `celery --workdir platform -A portal.celery worker --beat --pool threads`.

Tasks take ids only, are sent on commit, acknowledge late and may run twice. What a lost broker forgot, the sweeps make
again from the database. The beat schedule is in the settings.
"""

import os

from celery import Celery
from celery.signals import setup_logging

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings.demo")

app = Celery("portal")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@setup_logging.connect
def _keep_our_logging(**_: object) -> None:
    """Connected only so that Celery leaves logging as Django configured it (JSON lines)."""
