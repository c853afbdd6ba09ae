"""Django's entry to this app."""

from django.apps import AppConfig


class OrganisationsConfig(AppConfig):
    """See the package's docstring."""

    name = "organisations"

    def ready(self) -> None:
        """Import for effect: connects the receivers of sign-in signals."""
        from organisations import receivers  # noqa: F401
