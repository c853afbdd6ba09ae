"""A silo's settings: FOLDER/silo.toml, then the environment (which wins), checked before anything else happens.

| silo.toml                     | environment                    | meaning                                                  |
|-------------------------------|--------------------------------|----------------------------------------------------------|
| name, portal                  | SILO_PORTAL                    | this silo's name in the network; the portal's address    |
| data, labels, opt_out         | SILO_DATA, SILO_LABELS, SILO_OPT_OUT | DICOM folder, labels.csv, opt-out list             |
| modalities                    |                                | of the images that may be used                           |
| ca_bundle                     | SILO_CA_BUNDLE                 | PEM file of the hospital's own authorities               |
| proxy                         | HTTPS_PROXY, NO_PROXY          | the proxy on the way to the portal, see proxy.py         |
| keep_copies                   | SILO_KEEP_COPIES               | keep a copy of all that leaves                           |
| [broker] url                  | SILO_BROKER_URL                | Redis or Valkey; empty: an embedded one                  |
| [training] threads, allow_constant, networks | SILO_TRAINING_THREADS, SILO_TRAINING_ALLOW_CONSTANT | local training |
| [label_source] source, finding, present, absent |           | labels.csv, DICOM reports, or what a package brings      |
| [training] device, nice       |                                | CPU or which graphics card; how far training yields      |
| [hours] train                 |                                | when this machine may train, such as "20:00-06:00"       |
| [consent] ...                 |                                | consents of patients in FHIR, see `Consent`              |
| [limits] ...                  |                                | time limits, see `Limits`                                |
| [page] host, port, name, off, tls_cert, tls_key | SILO_PAGE_PORT, SILO_PAGE_OFF | the node's own page, see `Page` |
| [dicomweb] url, query, ...    |                                | images asked from the PACS, see `DicomWeb`               |
| [receiver] port, peers, tls_cert, ... |                        | images sent by the PACS (C-STORE), see `Receiver`        |

The folder itself comes from the command line or SILO_HOME.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import tomllib
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from silo_node import proxy as proxies
from silo_node.errors import UsageError
from silo_node.imaging.terms import MODALITIES
from silo_node.service.hours import Window
from silo_node.service.log_files import MOST_MB

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
    "SILO_PAGE_OFF": ("page", "off"),
    "SILO_PAGE_PORT": ("page", "port"),
    "SILO_TRAINING_THREADS": ("training", "threads"),
    "SILO_TRAINING_ALLOW_CONSTANT": ("training", "allow_constant"),
}


def _split(url: str) -> SplitResult:
    """The parts of an address. Raises: ValueError, also for a port that is none (urlsplit itself looks only when asked)."""
    parts = urlsplit(url)
    try:
        _ = parts.port
    except ValueError:
        raise ValueError("the port must be a number from 0 to 65535") from None
    return parts


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Broker(_Strict):
    """url: redis://, rediss:// or redis+socket://; empty starts an embedded Valkey."""

    url: str = ""

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, url: str) -> str:
        if url and _split(url).scheme not in ("redis", "rediss", "redis+socket"):
            raise ValueError("must be empty or start with redis://, rediss:// or redis+socket://")
        return url


class Training(_Strict):
    """threads: CPU threads of one training; the number changes the last bits of a result, so it is fixed.
    allow_constant: whether the benchmark's trainer, which reads no image, may run.
    networks: names of networks this hospital allows; empty for all that the software knows.
    device: "cpu", "cuda" or "cuda:1"; "auto" is the first graphics card, or the CPU where there is none.
    nice: how far training yields to everything else on this machine, 0 to 19.
    """

    threads: Annotated[int, Field(ge=1, le=256)] = 1
    allow_constant: bool = False
    networks: tuple[str, ...] = ()
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,2})?)$")] = "auto"
    nice: Annotated[int, Field(ge=0, le=19)] = 5


class Hours(_Strict):
    """train: "20:00-06:00" in this machine's local time; empty for always. Rounds at other times are refused."""

    train: str = ""

    @field_validator("train")
    @classmethod
    def _window(cls, text: str) -> str:
        if text:
            Window.parse(text)
        return text


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
    watch_seconds: Annotated[float, Field(gt=0, le=86400)] = 60.0
    """Between two looks for new files in the DICOM folder and the inbox, and for the time of a fetch from the PACS."""
    opt_out_hours: Annotated[int, Field(ge=1, le=24)] = 24
    """Age of the last good reading of the opt-out list at which rounds are refused; never above 24."""
    free_mb: Annotated[int, Field(ge=0)] = 200
    """Free space on the silo's disk, in MB, below which rounds are refused."""
    cache_gb: Annotated[float, Field(ge=0)] = 50
    """Decoded pictures on the silo's disk, in GB; the longest unused go first (disk.py)."""
    sent_mb: Annotated[int, Field(ge=0)] = 5000
    """Copies of what left (`keep_copies`), in MB."""
    logs_mb: Annotated[int, Field(ge=1)] = MOST_MB
    """Each log with its old pieces, in MB."""
    key_days: Annotated[int, Field(ge=1)] = 365
    """Age of the silo's key, in days, from which on `silo doctor` and the node's page ask for a new one."""


class Page(_Strict):
    """The node's own page. It answers on this machine only, unless it has a certificate and an internal name.

    name: the name in the browser's address bar, such as silo.hospital.internal; passkeys are bound to it.
    tls_cert, tls_key: PEM files, absolute or relative to the silo's folder.
    metrics_token_file: its first line is the Bearer token with which the hospital's Prometheus reads /metrics; without it
    there is no such address.
    """

    off: bool = False
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8765
    name: Annotated[str, Field(pattern=r"^[a-z0-9.-]{0,253}$")] = ""
    tls_cert: str = ""
    tls_key: str = ""
    metrics_token_file: str = ""

    @model_validator(mode="after")
    def _never_open_by_accident(self) -> Page:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("tls_cert and tls_key: both, or none")
        try:
            local = ip_address(self.host).is_loopback
        except ValueError:
            raise ValueError("host: must be an address such as 127.0.0.1 or 10.0.0.5, not a name") from None
        if self.name and not self.tls_cert:
            raise ValueError("name: needs tls_cert and tls_key, because browsers allow passkeys on https pages only")
        if not local and not (self.tls_cert and self.name):
            raise ValueError(
                "host: other machines would reach the page: set tls_cert, tls_key and name (the internal name), or keep "
                "127.0.0.1"
            )
        return self

    @property
    def host_name(self) -> str:
        """What a browser calls this page; also the passkeys' relying party."""
        return self.name or "localhost"

    @property
    def origin(self) -> str:
        """As a browser writes it: `http://localhost:8765`."""
        scheme, usual = ("https", 443) if self.tls_cert else ("http", 80)
        return f"{scheme}://{self.host_name}" + ("" if self.port == usual else f":{self.port}")


class Consent(_Strict):
    """Where the patients' FHIR consents come from, beside the opt-out list; docs/hospital-it.md has examples.

    source: "" for none (or what `silo consent import` put in place), "folder", "file" or "server".
    path: the folder or file. url: the search, such as https://fhir.example.org/fhir/Consent?_include=Consent:patient
    token_file: its first line is sent as Bearer token. codes, purposes: "system|code"; a permit must name one of them.
    identifier_system, map: which PatientID a consent is about, see consent/patients.py.
    max_age_hours: age of the last good reading at which rounds are refused.
    """

    source: Literal["", "folder", "file", "server"] = ""
    path: str = ""
    url: str = ""
    token_file: str = ""
    codes: tuple[str, ...] = ("urn:oid:2.16.840.1.113883.3.1937.777.24.5.3|2.16.840.1.113883.3.1937.777.24.5.3.8",)
    purposes: tuple[str, ...] = ("http://terminology.hl7.org/CodeSystem/v3-ActReason|HRESCH",)
    identifier_system: str = ""
    map: str = ""
    max_age_hours: Annotated[int, Field(ge=1, le=24)] = 24

    @field_validator("codes", "purposes")
    @classmethod
    def _with_system(cls, tokens: tuple[str, ...]) -> tuple[str, ...]:
        for token in tokens:
            system, _, code = token.rpartition("|")
            if not system or not code:
                raise ValueError('each must be "system|code"')
        return tokens

    @field_validator("url")
    @classmethod
    def _search(cls, url: str) -> str:
        if not url:
            return url
        parts = _split(url)
        local = parts.hostname in ("127.0.0.1", "localhost", "::1")
        if parts.scheme != "https" and not (parts.scheme == "http" and local):
            raise ValueError("must start with https://, or http:// on this machine")
        if not parts.hostname or parts.username or parts.fragment or not parts.path.endswith("/Consent"):
            raise ValueError(
                "must be a search such as https://fhir.example.org/fhir/Consent?_count=200, without a user"
            )
        return url

    @model_validator(mode="after")
    def _complete(self) -> Consent:
        if not self.codes and not self.purposes:
            raise ValueError("codes, purposes: at least one must be named")
        for source, needed, unused in (("folder", "path", "url"), ("file", "path", "url"), ("server", "url", "path")):
            if self.source == source and (not getattr(self, needed) or getattr(self, unused)):
                raise ValueError(f'source = "{source}" needs {needed}, and no {unused}')
        if not self.source and (self.path or self.url):
            raise ValueError('source must say "folder", "file" or "server"')
        if self.map and self.identifier_system:
            raise ValueError("map and identifier_system: choose one")
        return self


QUERY_KEYS = ("Modality", "StudyDate", "StudyDescription", "InstitutionName")


class DicomWeb(_Strict):
    """A PACS that is asked for images by DICOMweb (QIDO-RS, WADO-RS). Nothing is ever written to it.

    url: the root, such as https://pacs.hospital.example/dicom-web. query: what is asked for, by DICOM keyword; a list
    of modalities is asked for one by one. http:// only to this machine, unless `unsafe_plain_http`.
    """

    url: str
    user: str = ""
    password_file: str = ""
    """File whose first line is the password."""
    ca_bundle: str = ""
    """PEM file of the authorities that signed the PACS's certificate; empty: the silo's `ca_bundle`, else the public ones."""
    unsafe_plain_http: bool = False
    query: dict[str, str | tuple[str, ...]] = {}
    every_minutes: Annotated[int, Field(ge=1, le=10080)] = 60
    timeout_seconds: Annotated[float, Field(gt=0, le=600)] = 30.0
    """How long the PACS may be silent."""
    instance_seconds: Annotated[float, Field(gt=0, le=7200)] = 300.0
    """How long one answer may take in all."""
    max_mb: Annotated[int, Field(ge=1, le=65536)] = 512
    """Size of one instance above which it is not taken."""
    max_instances: Annotated[int, Field(ge=1)] = 100_000
    """How many instances one run fetches; the next goes on."""
    free_mb: Annotated[int, Field(ge=0)] = 1000
    """Free space, in MB, that is left on the disk of the inbox."""

    @field_validator("url")
    @classmethod
    def _root(cls, url: str) -> str:
        parts = _split(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("must be an address such as https://pacs.hospital.example/dicom-web")
        if parts.username or parts.password:
            raise ValueError("must hold no user or password: use `user` and `password_file`")
        return url.rstrip("/")

    @field_validator("query")
    @classmethod
    def _known_keys(cls, query: dict[str, str | tuple[str, ...]]) -> dict[str, str | tuple[str, ...]]:
        for key, value in query.items():
            if key not in QUERY_KEYS:
                raise ValueError(f"{key} can't be asked for: use {', '.join(QUERY_KEYS)}")
            if key != "Modality" and not isinstance(value, str):
                raise ValueError(f"{key} must be one text")
        return query

    @model_validator(mode="after")
    def _guarded(self) -> DicomWeb:
        parts = _split(self.url)
        local = parts.hostname in ("127.0.0.1", "localhost", "::1")
        if parts.scheme == "http" and not local and not self.unsafe_plain_http:
            raise ValueError("url: must be https:// unless the PACS is on this machine, or set unsafe_plain_http")
        if bool(self.user) != bool(self.password_file):
            raise ValueError("set both `user` and `password_file`, or neither")
        return self


def _ae_title(title: str) -> str:
    if not 1 <= len(title) <= 16 or title != title.strip() or not re.fullmatch(r"[\x20-\x5b\x5d-\x7e]+", title):
        raise ValueError("an AE title has 1 to 16 printable characters, no backslash, no space at its ends")
    return title


AeTitle = Annotated[str, AfterValidator(_ae_title)]


class Peer(_Strict):
    """Who may send: the AE title that calls, and the host that it calls from. Both must match."""

    ae_title: AeTitle
    host: Annotated[str, Field(min_length=1)]


class Receiver(_Strict):
    """The C-STORE receiver, off unless this table is there. host: the address it listens on.

    tls_cert, tls_key: PEM files, absolute or relative to the silo's folder; with them nothing but TLS is spoken.
    tls_ca: PEM file of authorities; a peer must then show a certificate that one of them signed.
    """

    port: Annotated[int, Field(ge=1, le=65535)]
    ae_title: AeTitle
    host: str = "127.0.0.1"
    peers: Annotated[tuple[Peer, ...], Field(min_length=1)]
    max_mb: Annotated[int, Field(ge=1, le=4096)] = 512
    """Size of one instance above which it is refused."""
    instance_seconds: Annotated[float, Field(gt=0, le=7200)] = 300.0
    """How long one message, an instance that is, may take in all."""
    max_associations: Annotated[int, Field(ge=1, le=64)] = 4
    free_mb: Annotated[int, Field(ge=0)] = 1000
    """Free space, in MB, that is left on the disk of the inbox."""
    tls_cert: str = ""
    tls_key: str = ""
    tls_ca: str = ""

    @model_validator(mode="after")
    def _whole_tls(self) -> Receiver:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("tls_cert and tls_key: both, or none")
        if self.tls_ca and not self.tls_cert:
            raise ValueError("tls_ca: needs tls_cert and tls_key")
        return self


class LabelSource(_Strict):
    """source: "csv" reads labels.csv, "sr" the structured reports in the data folder; any other is the name under which an
    installed package brings one (imaging/label_sources.py). The codes are what such a report says, each as "SCHEME:VALUE":
    `finding` the question, such as "SCT:233604007", `present` and `absent` the answers.
    """

    source: str = "csv"
    finding: str = ""
    present: str = "SCT:52101004"
    absent: str = "SCT:2667000"

    @field_validator("source")
    @classmethod
    def _is_there(cls, source: str) -> str:
        if source in ("csv", "sr"):
            return source
        from silo_node.imaging import label_sources

        names = sorted({*label_sources.SOURCES, *label_sources.installed()})
        if source not in names:
            raise ValueError(f"source: must be one of {', '.join(names)}, or that of an installed package")
        return source

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
    modalities: tuple[str, ...] = ()
    """Of the images that may be used, such as CR and DX; empty for all. Any other image is a row with its reason."""
    opt_out: str = ""
    ca_bundle: str = ""
    proxy: str = ""
    unsafe_plain_http: bool = False
    """Talk to a portal on another machine without TLS. Requests stay signed, but anybody on the way can read them."""
    keep_copies: bool = False
    """Keep a copy of every body that leaves in FOLDER/sent, for a hospital that wants to look for itself."""
    broker: Broker = Broker()
    training: Training = Training()
    hours: Hours = Hours()
    consent: Consent = Consent()
    limits: Limits = Limits()
    label_source: LabelSource = LabelSource()
    page: Page = Page()
    dicomweb: DicomWeb | None = None
    receiver: Receiver | None = None

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError("must be 1 to 63 of a-z, 0-9, - and _, starting and ending with a letter or digit")
        return name

    @field_validator("proxy")
    @classmethod
    def _proxy(cls, text: str) -> str:
        return proxies.address(text) if text else text

    @field_validator("portal")
    @classmethod
    def _origin_only(cls, url: str) -> str:
        parts = _split(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an address such as https://portal.example.org")
        if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username:
            # The path is part of what is signed: a proxy that shortens it would break every request.
            raise ValueError("must be scheme, host and port only, without path or user")
        return f"{parts.scheme}://{parts.netloc}"

    @field_validator("modalities")
    @classmethod
    def _known_modalities(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in MODALITIES:
                raise ValueError(f"{_shown(name)} is no modality of DICOM: write them as the headers do, such as CR")
        return names

    @model_validator(mode="after")
    def _encrypted(self) -> Settings:
        parts = _split(self.portal)
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
            raise UsageError(
                f"{path} does not exist: make a silo with `silo init {shlex.quote(str(folder))} --name ...`"
            ) from None
        except PermissionError:
            raise UsageError(
                f"{path} can't be read by this user: run this as the folder's owner, or correct owner and mode"
            ) from None
        except OSError as error:
            raise UsageError(f"{path} can't be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UsageError(f"{path} is not UTF-8 text: save it as UTF-8") from None
        except tomllib.TOMLDecodeError as error:
            there = str(error).startswith(("Cannot declare", "Cannot overwrite", "Cannot mutate", "Cannot redefine"))
            more = "; it is there already, perhaps further up: add to what is there, each once" if there else ""
            raise UsageError(f"{path}: not TOML: {error}{more}") from None
        _overlay(values, os.environ if environment is None else environment)
        try:
            return cls(folder, Settings.model_validate(_lists_to_tuples(values)))
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(str(part) for part in item['loc'])}: {words(item)}" for item in error.errors()
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
    def consent_path(self) -> Path | None:
        """The folder or file of consents: as set, else what `silo consent import` put in place; None without one."""
        if self.settings.consent.source in ("folder", "file"):
            return self._at(self.settings.consent.path, self.folder)
        return self.consent_imported if not self.settings.consent.source and self.consent_imported.exists() else None

    @property
    def consent_imported(self) -> Path:
        """What `silo consent import` put in place."""
        return self.folder / "consent" / "imported.json"

    @property
    def consent_kept(self) -> Path:
        """The last good reading of the consents."""
        return self.folder / "consent" / "fhir.json"

    @property
    def consent_asked(self) -> Path:
        """How the FHIR server answered last."""
        return self.folder / "consent" / "asked.json"

    @property
    def consent_kept_list(self) -> Path:
        """The last good reading of the opt-out list."""
        return self.folder / "consent" / "opt_out.csv"

    @property
    def consent_known(self) -> Path:
        """The decisions that the silo's log knows."""
        return self.folder / "consent" / "known.json"

    @property
    def consent_map(self) -> Path | None:
        """CSV: reference -> PatientID."""
        return self._at(self.settings.consent.map, self.folder) if self.settings.consent.map else None

    @property
    def consent_token(self) -> Path | None:
        """The token for the FHIR server."""
        return self._at(self.settings.consent.token_file, self.folder) if self.settings.consent.token_file else None

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
    def inbox(self) -> Path:
        """Images that were fetched from, or sent by, the PACS; scanned like the DICOM folder."""
        return self.folder / "inbox"

    @property
    def pacs_db(self) -> Path:
        """What was fetched and received, and how the last fetch ended."""
        return self.folder / "pacs.db"

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
    if leaf in ("threads", "port"):
        if not text.isdecimal():
            raise UsageError(f"{variable}={text}: must be a whole number")
        return int(text)
    if leaf in ("allow_constant", "keep_copies", "off"):
        if text.lower() not in ("true", "false", "1", "0"):
            raise UsageError(f"{variable}={text}: must be true or false")
        return text.lower() in ("true", "1")
    return text


def _lists_to_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists_to_tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


_KINDS: Final = {
    "int": "a whole number, such as 5, without quotes",
    "float": "a number, such as 2.5, without quotes",
    "bool": "true or false, without quotes",
    "string": 'a text in quotes, such as "x"',
    "tuple": 'a list, such as ["x"]',
    "dict": 'a table, such as {Modality = "CR"}',
    "model": "a table, which begins with its name in brackets",
}
_BOUNDS: Final = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}


def words(item: Any) -> str:
    """What is wrong with one setting: what was found, and what is needed; from pydantic's error about it, in our words."""
    kind, limits = item["type"], item.get("ctx", {})
    if kind == "extra_forbidden":
        return "is not a setting; check its spelling"
    if kind == "missing":
        return "is missing"
    if kind == "value_error":  # our own sentence
        return str(item["msg"]).removeprefix("Value error, ")
    of = kind.rpartition("_")[0]
    if kind in _BOUNDS:
        bound, said = _BOUNDS[kind]
        needed = f"{said} {limits[bound]}"
    elif kind.endswith(("_type", "_parsing", "_from_float")) and of.partition("_")[0] in _KINDS:
        needed = _KINDS[of.partition("_")[0]]
    elif kind == "literal_error":
        needed = f"one of {limits['expected']}"
    elif kind in ("string_too_short", "too_short"):
        needed = "not empty"
    elif kind == "string_pattern_mismatch":
        needed = f"of the form {limits['pattern']}"
    else:
        return str(item["msg"])
    return f"is {_shown(item['input'])}, must be {needed}"


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
