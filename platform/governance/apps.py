"""Django's entry to this app."""

from django.apps import AppConfig


class GovernanceConfig(AppConfig):
    """See the package's docstring."""

    name = "governance"
