"""A silo's settings: FOLDER/silo.toml, then the environment (which wins), checked before anything else happens.

| silo.toml                     | environment                    | meaning                                                  |
|-------------------------------|--------------------------------|----------------------------------------------------------|
| name, portal                  | SILO_PORTAL                    | this silo's name in the network; the portal's address    |
| data, labels, opt_out         | SILO_DATA, SILO_LABELS, SILO_OPT_OUT | DICOM folder, labels.csv, opt-out list             |
| ca_bundle                     | SILO_CA_BUNDLE                 | PEM file of the hospital's own authorities               |
| keep_copies                   | SILO_KEEP_COPIES               | keep a copy of all that leaves                           |
| [broker] url                  | SILO_BROKER_URL                | Redis or Valkey; empty: an embedded one                  |
| [training] threads, allow_constant, networks | SILO_TRAINING_THREADS, SILO_TRAINING_ALLOW_CONSTANT | local training |
| [label_source] source, finding, present, absent |           | labels from labels.csv or from DICOM reports             |
| [limits] ...                  |                                | time limits, see `Limits`                                |

The folder itself comes from the command line or SILO_HOME. Proxies come from the usual HTTPS_PROXY and NO_PROXY.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from silo_node.errors import UsageError

OPT_OUT_NAMES = ("opt_out.csv", "opt-out.csv")
NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?")

_ENVIRONMENT = {
    "SILO_PORTAL": ("portal",),
    "SILO_DATA": ("data",),
    "SILO_LABELS": ("labels",),
    "SILO_OPT_OUT": ("opt_out",),
    "SILO_CA_BUNDLE": ("ca_bundle",),
    "SILO_KEEP_COPIES": ("keep_copies",),
    "SILO_BROKER_URL": ("broker", "url"),
    "SILO_TRAINING_THREADS": ("training", "threads"),
    "SILO_TRAINING_ALLOW_CONSTANT": ("training", "allow_constant"),
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Broker(_Strict):
    """url: redis://, rediss:// or redis+socket://; empty starts an embedded Valkey."""

    url: str = ""

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, url: str) -> str:
        if url and urlsplit(url).scheme not in ("redis", "rediss", "redis+socket"):
            raise ValueError("must be empty or start with redis://, rediss:// or redis+socket://")
        return url


class Training(_Strict):
    """threads: CPU threads of one training; the number changes the last bits of a result, so it is fixed.
    allow_constant: whether the benchmark's trainer, which reads no image, may run.
    networks: names of networks this hospital allows; empty for all that the software knows.
    """

    threads: Annotated[int, Field(ge=1, le=256)] = 1
    allow_constant: bool = False
    networks: tuple[str, ...] = ()


class Limits(_Strict):
    """Seconds, except where said."""

    poll: Annotated[int, Field(ge=1, le=60)] = 25
    """How long one long poll waits at the portal."""
    retry: Annotated[int, Field(ge=1, le=86400)] = 60
    """How long one request is tried again before the step that needed it fails."""
    heartbeat: Annotated[float, Field(gt=0, le=8)] = 3.0
    """Between two heartbeats in a round; the portal gives a silo up after 10."""
    scan_minutes: Annotated[int, Field(ge=1, le=10080)] = 60
    """Age at which the DICOM folder is read again."""
    opt_out_hours: Annotated[int, Field(ge=1, le=24)] = 24
    """Age of the last good reading of the opt-out list at which rounds are refused; never above 24."""
    free_mb: Annotated[int, Field(ge=0)] = 200
    """Free space on the silo's disk, in MB, below which rounds are refused."""


class LabelSource(_Strict):
    """source: "csv" reads labels.csv, "sr" the structured reports in the data folder. The codes are what such a report
    says, each as "SCHEME:VALUE": `finding` the question, such as "SCT:233604007", `present` and `absent` the answers.
    """

    source: Literal["csv", "sr"] = "csv"
    finding: str = ""
    present: str = "SCT:52101004"
    absent: str = "SCT:2667000"

    @model_validator(mode="after")
    def _codes(self) -> LabelSource:
        for name in ("finding", "present", "absent"):
            if self.source == "sr" and not re.fullmatch(r"[^:]+:[^:]+", getattr(self, name)):
                raise ValueError(f'{name}: must be a code such as "SCT:233604007" where source is "sr"')
        return self


class Settings(_Strict):
    """The content of silo.toml. Paths are absolute or relative to the silo's folder."""

    name: str
    portal: str
    data: str
    labels: str = ""
    opt_out: str = ""
    ca_bundle: str = ""
    unsafe_plain_http: bool = False
    """Talk to a portal on another machine without TLS. Requests stay signed, but anybody on the way can read them."""
    keep_copies: bool = False
    """Keep a copy of every body that leaves in FOLDER/sent, for a hospital that wants to look for itself."""
    broker: Broker = Broker()
    training: Training = Training()
    limits: Limits = Limits()
    label_source: LabelSource = LabelSource()

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError("must be 1 to 63 of a-z, 0-9, - and _, starting and ending with a letter or digit")
        return name

    @field_validator("portal")
    @classmethod
    def _origin_only(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an address such as https://portal.example.org")
        if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username:
            # The path is part of what is signed: a proxy that shortens it would break every request.
            raise ValueError("must be scheme, host and port only, without path or user")
        return f"{parts.scheme}://{parts.netloc}"

    @model_validator(mode="after")
    def _encrypted(self) -> Settings:
        parts = urlsplit(self.portal)
        local = parts.hostname in ("127.0.0.1", "localhost", "::1")
        if parts.scheme == "http" and not local and not self.unsafe_plain_http:
            raise ValueError("portal: must be https:// unless the portal is on this machine")
        return self


class Config:
    """A silo's folder and its settings; every path of the silo is named here once.

    folder: absolute. settings: checked. Raises (from `load`): UsageError naming file, field and what to do.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings
        self.name = settings.name
        self.portal = settings.portal

    @classmethod
    def load(cls, folder: Path, environment: Mapping[str, str] | None = None) -> Config:
        """Read and check FOLDER/silo.toml and the environment (None: this process's)."""
        folder = folder.expanduser().resolve()
        path = folder / "silo.toml"
        try:
            with path.open("rb") as file:
                values: dict[str, Any] = tomllib.load(file)
        except FileNotFoundError:
            raise UsageError(f"{path} does not exist: make a silo with `silo init {folder} --name ...`") from None
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{path}: not TOML: {error}") from None
        _overlay(values, os.environ if environment is None else environment)
        try:
            return cls(folder, Settings.model_validate(_lists_to_tuples(values)))
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(str(part) for part in item['loc'])}: {_words(item)}" for item in error.errors()
            )
            raise UsageError(f"{path}: {problems}") from None

    def _at(self, text: str, default: Path) -> Path:
        return (self.folder / Path(text).expanduser()) if text else default

    @property
    def data(self) -> Path:
        """The DICOM folder."""
        return self._at(self.settings.data, self.folder)

    @property
    def labels(self) -> Path:
        """labels.csv: beside the images unless the settings say otherwise."""
        return self._at(self.settings.labels, self.data / "labels.csv")

    @property
    def opt_out(self) -> Path | None:
        """The opt-out list: as set, else opt_out.csv (or opt-out.csv) in the silo's or the data folder; None without one.

        Raises: UsageError where there are several: a patient might stand in the one that is not read.
        """
        if self.settings.opt_out:
            return self._at(self.settings.opt_out, self.folder)
        places = {"the silo's folder": self.folder, "the data folder": self.data}
        found = {
            f"{name} in {place}": folder / name
            for place, folder in places.items()
            for name in OPT_OUT_NAMES
            if (folder / name).exists()
        }
        if len(set(found.values())) > 1:
            raise UsageError(
                f"there are several opt-out lists ({', '.join(found)}): keep one, with everybody in it, or name it in "
                "silo.toml as `opt_out`",
                "OPT_OUT_SEVERAL",
            )
        return next(iter(found.values()), None)

    @property
    def ca_bundle(self) -> Path | None:
        """PEM file, or None for the system's authorities."""
        return self._at(self.settings.ca_bundle, self.folder) if self.settings.ca_bundle else None

    @property
    def keys(self) -> Path:
        """silo.key, witness.key, log.key, steward-*.key."""
        return self.folder / "keys"

    @property
    def pin(self) -> Path:
        """What was pinned at enrolment: the portal's keys."""
        return self.folder / "portal.json"

    @property
    def trust(self) -> Path:
        """The hospital's trust.json: who its stewards are."""
        return self.folder / "trust.json"

    @property
    def policy(self) -> Path:
        """The signed data-use policy in force."""
        return self.folder / "policy.json"

    @property
    def approvals(self) -> Path:
        """approvals/STUDY/*.json: every statement of the stewards."""
        return self.folder / "approvals"

    @property
    def resumes(self) -> Path:
        """resumes/STUDY/*.json: stewards' signed resumes of studies that were paused here."""
        return self.folder / "resumes"

    @property
    def studies(self) -> Path:
        """studies/STUDY/: manifest bytes by digest; paused.json while the study waits for a steward."""
        return self.folder / "studies"

    @property
    def models(self) -> Path:
        """models/HEX.state: model states by digest."""
        return self.folder / "models"

    @property
    def feedback(self) -> Path:
        """feedback/STUDY/: what rounding took from this silo's updates, where the study sends it later."""
        return self.folder / "feedback"

    @property
    def runs(self) -> Path:
        """runs/ROUND/: what belongs to one open round."""
        return self.folder / "runs"

    @property
    def index_db(self) -> Path:
        """The index of the DICOM folder."""
        return self.folder / "index.db"

    @property
    def cache(self) -> Path:
        """Decoded images."""
        return self.folder / "cache"

    @property
    def rounds(self) -> Path:
        """rounds.jsonl: one line a finished round."""
        return self.folder / "rounds.jsonl"


def _overlay(values: dict[str, Any], environment: Mapping[str, str]) -> None:
    for variable, path in _ENVIRONMENT.items():
        text = environment.get(variable)
        if text is None:
            continue
        *tables, leaf = path
        at = values
        for table in tables:
            at = at.setdefault(table, {})
            if not isinstance(at, dict):
                raise UsageError(f"silo.toml: [{table}] must be a table")
        at[leaf] = _typed(variable, leaf, text)


def _typed(variable: str, leaf: str, text: str) -> Any:
    if leaf == "threads":
        if not text.isdecimal():
            raise UsageError(f"{variable}={text}: must be a whole number")
        return int(text)
    if leaf in ("allow_constant", "keep_copies"):
        if text.lower() not in ("true", "false", "1", "0"):
            raise UsageError(f"{variable}={text}: must be true or false")
        return text.lower() in ("true", "1")
    return text


def _lists_to_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists_to_tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _words(item: Any) -> str:
    if item["type"] == "extra_forbidden":
        return "is not a setting; check its spelling"
    if item["type"] == "missing":
        return "is missing"
    return str(item["msg"]).removeprefix("Value error, ")
