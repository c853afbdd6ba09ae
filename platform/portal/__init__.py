"""The Django project: settings, addresses, and what every app shares (ids, keys, events, problems, access).

Nothing here imports an app: the apps' order (federation -> governance -> organisations -> evidence) stays one way.
"""

from portal.celery import app as celery_app

__all__ = ["celery_app"]
