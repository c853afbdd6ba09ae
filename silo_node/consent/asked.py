"""How the FHIR server answered when it was last asked, by whoever asked: a round, a command, or the watch of `silo run`.

FOLDER/consent/asked.json holds the fault, or nothing; its own time is that of the answer.
"""

from __future__ import annotations

import time

from silo_node.config import Config
from silo_node.consent import registry, server, sources
from silo_node.errors import DiskFull, SiloError
from silo_node.files import read_json, write_json


def last(config: Config) -> SiloError | None:
    """The fault that was met last; None where there was none, or nobody has asked."""
    said = read_json(config.consent_asked) or {}
    return SiloError(said["code"], said["sentence"]) if said.get("code") else None


def age(config: Config) -> float:
    """Seconds since somebody asked; endless where nobody has."""
    try:
        return abs(time.time() - config.consent_asked.stat().st_mtime)
    except OSError:
        return float("inf")


def note(config: Config, fault: SiloError | None) -> None:
    """The server has just been asked."""
    said = {} if fault is None else {"code": fault.code, "sentence": fault.sentence}
    try:
        write_json(config.consent_asked, said, sync=False)
    except DiskFull:
        return  # the full disk is said elsewhere


def first_page(config: Config) -> SiloError | None:
    """Ask for the first page only, and note nothing: whether the server is there and gives us consents."""
    settings = config.settings.consent
    try:
        token = registry.token(config)
        sources.whole(server.search(settings.url, token=token, ca_bundle=config.ca_bundle, pages=1))
    except SiloError as error:
        return error
    return None


def ask(config: Config) -> None:
    """Ask and note: for the first page; after a fault for all of them, as a round does, for it may lie in a later one."""
    try:
        if last(config) is None:
            note(config, first_page(config))
        else:
            registry.fetch(config)  # which notes what it met
    except SiloError as error:
        note(config, error)
