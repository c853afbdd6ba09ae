"""The project as an app: checks at start."""

from django.apps import AppConfig


class PortalConfig(AppConfig):
    """Registers the system checks; has no models."""

    name = "portal"

    def ready(self) -> None:
        """Import for effect: the checks register themselves."""
        from portal import checks  # noqa: F401
