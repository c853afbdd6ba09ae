"""Which file, folder or address an error about consents means: for the hospital's own eyes, at its terminal and in its status.

The errors' own sentences may go to the portal, so they name the setting and never its value.
"""

from __future__ import annotations

from pathlib import Path

from silo_node.config import Config
from silo_node.errors import SiloError

_SOURCE = ("MISSING", "MALFORMED", "STALE", "SERVER", "NOT_READ")


def of(config: Config, code: str) -> str:
    """A sentence; "" for an error of another kind, or where nothing is set."""
    settings = config.settings.consent
    if code.startswith("OPT_OUT_"):
        try:
            path = config.opt_out
        except SiloError:  # several, which it names
            return ""
        return _looked("The opt-out list", path) or f"It is looked for in {config.folder} and {config.data}."
    if code.startswith("CONSENT_MAP_"):
        return _looked("The map ([consent] map)", config.consent_map)
    if code == "CONSENT_TOKEN":
        return _looked("The token ([consent] token_file)", config.consent_token)
    if code == "CONSENT_UNASSIGNED":
        return _looked("The map ([consent] map)", config.consent_map) or (
            f'[consent] identifier_system is "{settings.identifier_system}".' if settings.identifier_system else ""
        )
    if code not in {f"CONSENT_{each}" for each in _SOURCE}:
        return ""
    if settings.source == "server":
        return f"The search ([consent] url): {settings.url}"
    if settings.source:
        return _looked("The consents ([consent] path)", config.consent_path)
    return f"What `silo consent import` put in place: {config.consent_imported}"


def named(config: Config, error: SiloError) -> SiloError:
    """The same error, whose sentence names the place too. It is for this hospital only from now on."""
    place = of(config, error.code)
    if place and place not in error.sentence:
        error.sentence = f"{error.sentence} {place}"
    return error


def _looked(what: str, path: Path | None) -> str:
    return "" if path is None else f"{what}: {path}"
