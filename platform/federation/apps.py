"""The Django app `federation`; it hears from governance when a study becomes active, is resumed or halted."""

from django.apps import AppConfig


class FederationConfig(AppConfig):
    """Connects the receivers; governance never imports this app."""

    name = "federation"
    verbose_name = "Federation"

    def ready(self) -> None:
        """Import for effect: the receivers connect themselves."""
        from federation import receivers  # noqa: F401
