"""The demo's settings, from the environment, checked before anything starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MOST_HOSPITALS = 20


class SettingError(ValueError):
    """A setting can't be used; the message says which, why, and what to do."""


@dataclass(frozen=True)
class Settings:
    """data: a folder of DICOM, one sub-folder a hospital, or None for drawn pictures; port: None for any free one."""

    data: Path | None
    rounds: int
    port: int | None
    exit_at_end: bool
    seed: int


def read(environment: Mapping[str, str] = os.environ) -> Settings:
    """DATA, ROUNDS, PORT, EXIT, SEED; raises SettingError."""
    data = Path(environment["DATA"]).expanduser().resolve() if environment.get("DATA") else None
    return Settings(
        data=data,
        rounds=_number(environment, "ROUNDS", 25 if data else 6, 1, 1000),
        port=_number(environment, "PORT", 8000, 0, 65535) or None,
        exit_at_end=environment.get("EXIT", "") not in ("", "0", "no"),
        seed=_number(environment, "SEED", 1, 0, 2**53 - 1),
    )


def _number(environment: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = environment.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal() or not least <= int(text) <= most:
        raise SettingError(f"{name}={text} can't be used: give a whole number from {least} to {most}.")
    return int(text)


def hospitals_in(data: Path) -> dict[str, Path]:
    """Hospital name -> folder, for each sub-folder of `data` with a labels.csv; raises SettingError."""
    if not data.is_dir():
        raise SettingError(
            f"DATA={data} is not a folder. Give a folder with one sub-folder a hospital, each with a labels.csv."
        )
    found = {path.name: path for path in sorted(data.iterdir()) if (path / "labels.csv").is_file()}
    if not 3 <= len(found) <= MOST_HOSPITALS:
        raise SettingError(
            f"DATA={data} has {len(found)} sub-folders with a labels.csv; the demo needs 3 to {MOST_HOSPITALS}: "
            "fewer than three hospitals can't hide one another's update in a sum."
        )
    names = {name: silo_name(name) for name in found}
    if len(set(names.values())) != len(names):
        raise SettingError(f"DATA={data} has sub-folders whose names differ only in signs or case; rename them.")
    return found


def silo_name(folder: str) -> str:
    """The silo's name for a data folder (`site_1` becomes `site-1`); raises SettingError."""
    name = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in folder.lower()).strip("-")
    if not name or len(name) > 50:
        raise SettingError(f"The folder name {folder!r} can't name a hospital: use up to 50 letters and digits.")
    return name
