"""A PACS that lies, stalls or floods: nothing of it gets a name in the inbox, and the report says why."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from silo_node import scanning
from silo_node.config import Config
from silo_node.errors import DiskFull, SiloError
from silo_node.health import status
from silo_node.pacs import dicomweb, fetch
from silo_node.pacs.book import MAX_TRIES
from tests.silo_node.imaging.conftest import write_dicom
from tests.silo_node.pacs.conftest import MULTIPART, Hospital, Liar, certificate, part, reply

pytestmark = pytest.mark.timeout(60)
SOP = "1.2.3.4.5"


@pytest.fixture
def image(tmp_path: Path) -> bytes:
    """The instance that is asked for, as the PACS should send it."""
    return write_dicom(tmp_path / "right.dcm", sop=SOP).read_bytes()


def refused(config: Config, hospital: Hospital) -> dict[str, int]:
    """The codes of one run in which nothing may be taken."""
    report, error = fetch.fetch(config)
    assert error is None and report.got == 0 and hospital.inbox() == []
    assert list((hospital.folder / "inbox" / ".incoming" / "fetch").iterdir()) == [], "half a file was left"
    return report.refused


def test_the_right_answer_is_taken_multipart_or_plain(liar: Liar, hospital: Hospital, image: bytes) -> None:
    liar.wado = lambda request: reply(request, part(image), MULTIPART)
    config = hospital.asks(liar.url)
    report, error = fetch.fetch(config)
    assert error is None and report.got == 1
    assert hospital.inbox()[0].read_bytes() == image
    hospital.inbox()[0].unlink()
    liar.wado = lambda request: reply(request, image, "application/dicom")
    report, _ = fetch.fetch(config)
    assert report.got == 1 and hospital.inbox()[0].read_bytes() == image, "a file that was deleted is wanted again"


@pytest.mark.parametrize("size", [1, 7, 65530, 65536, 65537])
def test_an_end_that_lies_across_two_pieces_is_found(liar: Liar, hospital: Hospital, tmp_path: Path, size: int) -> None:
    data = write_dicom(tmp_path / "padded.dcm", sop=SOP, ImageComments="\r\n--frontie" * 3).read_bytes() + bytes(size)

    def slowly(request: BaseHTTPRequestHandler) -> None:
        body = part(data)
        reply(request, body[:-9], MULTIPART, length=len(body))
        request.wfile.flush()
        time.sleep(0.05)  # so that it arrives in two pieces
        request.wfile.write(body[-9:])

    liar.wado = slowly
    report, error = fetch.fetch(hospital.asks(liar.url))
    assert error is None and report.got == 1 and hospital.inbox()[0].read_bytes() == data


def test_a_body_that_is_cut_is_refused_and_after_some_runs_left_alone(
    liar: Liar, hospital: Hospital, image: bytes
) -> None:
    whole = part(image)
    liar.wado = lambda request: reply(request, whole[: len(whole) // 2], MULTIPART, length=len(whole))
    config = hospital.asks(liar.url)
    for _ in range(MAX_TRIES + 2):
        assert refused(config, hospital) == {"PACS_CUT": 1}
    assert liar.wado_asked() == MAX_TRIES
    liar.wado = lambda request: reply(request, whole, MULTIPART)
    report, _ = fetch.fetch(config, again=True)
    assert report.got == 1 and report.refused == {}


@pytest.mark.parametrize(
    ("kind", "change", "code"),
    [
        (MULTIPART, lambda whole: whole[:-4], "PACS_ANSWER"),  # the end without its two dashes
        (MULTIPART, lambda whole: whole.replace(b"\r\n--frontier--\r\n", b""), "PACS_CUT"),
        (MULTIPART, lambda whole: whole[:10], "PACS_CUT"),
        (MULTIPART, lambda whole: whole.replace(b"--frontier--", b"--frontier") + whole, "PACS_ANSWER"),  # two parts
        (MULTIPART, lambda whole: whole.replace(b"application/dicom", b"text/html"), "PACS_ANSWER"),
        (MULTIPART, lambda whole: b"x" * 200_000, "PACS_ANSWER"),
        (MULTIPART, lambda whole: b"", "PACS_CUT"),
        ("text/html", lambda whole: b"<html>Sign in</html>", "PACS_ANSWER"),
        ("multipart/related", lambda whole: whole, "PACS_ANSWER"),  # no boundary
        ("application/dicom", lambda whole: b"<html>Sign in</html>" * 50, "NOT_DICOM"),
        ("application/dicom", lambda whole: b"", "NOT_DICOM"),
    ],
)
def test_what_is_no_dicom_file_in_multipart_is_refused(
    liar: Liar, hospital: Hospital, image: bytes, kind: str, change: Callable[[bytes], bytes], code: str
) -> None:
    liar.wado = lambda request: reply(request, change(part(image)), kind)
    assert refused(hospital.asks(liar.url), hospital) == {code: 1}


@pytest.mark.parametrize("wrong", [{"sop": "1.2.3.4.6"}, {"sop": SOP, "patient": "P2"}])
def test_another_instance_or_patient_than_was_asked_for_is_refused(
    liar: Liar, hospital: Hospital, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    other = write_dicom(tmp_path / "other.dcm", **wrong).read_bytes()
    liar.wado = lambda request: reply(request, part(other), MULTIPART)
    assert refused(hospital.asks(liar.url), hospital) == {"PACS_OTHER": 1}


def test_an_endless_body_is_ended_by_its_size(liar: Liar, hospital: Hospital) -> None:
    def endless(request: BaseHTTPRequestHandler) -> None:
        reply(request, part(b"")[:50], MULTIPART, length=10**12)
        while True:
            request.wfile.write(bytes(2**16))

    liar.wado = endless
    assert refused(hospital.asks(liar.url, "max_mb = 2"), hospital) == {"INSTANCE_TOO_BIG": 1}


def test_a_body_that_drips_is_ended_by_the_clock(liar: Liar, hospital: Hospital) -> None:
    def drips(request: BaseHTTPRequestHandler) -> None:
        reply(request, part(b"")[:50], MULTIPART, length=10**6)
        while True:
            request.wfile.write(b"x")
            time.sleep(0.05)

    liar.wado = drips
    began = time.monotonic()
    assert refused(hospital.asks(liar.url, "instance_seconds = 1"), hospital) == {"PACS_SLOW": 1}
    assert time.monotonic() - began < 5


def test_a_pacs_that_is_silent_is_unreachable_not_waited_for(liar: Liar, hospital: Hospital) -> None:
    told = threading.Event()
    liar.wado = lambda request: told.wait(20)
    hospital.asks(liar.url)
    settings = hospital.folder / "silo.toml"
    settings.write_text(settings.read_text().replace("timeout_seconds = 5", "timeout_seconds = 0.5"))
    config = Config.load(hospital.folder, {})
    report, error = fetch.fetch(config)
    told.set()
    assert error is not None and error.code == "PACS_UNREACHABLE" and report.missing == 1
    assert status.report(config)["problems"][-1]["sentence"] == report.sentence


def test_a_certificate_counts_only_with_the_hospitals_authority(
    liar: Liar, hospital: Hospital, image: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, key = certificate(tmp_path)
    liar.encrypt(mine, key)
    liar.wado = lambda request: reply(request, part(image), MULTIPART)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(mine))  # the environment has no say
    _, error = fetch.fetch(hospital.asks(liar.url))
    assert error is not None and error.code == "PACS_UNREACHABLE" and "ca_bundle" in error.sentence
    report, error = fetch.fetch(hospital.asks(liar.url, f'ca_bundle = "{mine}"'))
    assert error is None and report.got == 1


def test_many_wrong_answers_in_a_row_end_the_run(liar: Liar, hospital: Hospital) -> None:
    liar.instances = [f"1.2.3.4.{number}" for number in range(40)]
    liar.wado = lambda request: reply(request, b"<html>", "text/html")
    report, error = fetch.fetch(hospital.asks(liar.url))
    assert error is not None and error.code == "PACS_ANSWER" and liar.wado_asked() == fetch.WRONG_IN_A_ROW
    assert report.missing == 40


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"<html>", "text/html"),
        (b'{"a": 1}', "application/json"),
        (b"[1, 2]", "application/json"),
        (b'[{"0020000D": {"Value": ["../../admin"]}}]', "application/json"),
        (b'[{"0020000D": {"Value": [{}]}}]', "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"\xff\xfe[]", "application/json"),
    ],
)
def test_a_search_answer_that_is_not_one_ends_the_run(liar: Liar, hospital: Hospital, body: bytes, kind: str) -> None:
    liar.search = lambda request: reply(request, body, kind)
    _, error = fetch.fetch(hospital.asks(liar.url))
    assert error is not None and error.code == "PACS_ANSWER" and "admin" not in error.sentence


def test_a_search_answer_without_end_is_bounded(
    liar: Liar, hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicomweb, "MOST_SEARCH", 2**20)

    def endless(request: BaseHTTPRequestHandler) -> None:
        reply(request, b"[", length=10**12)
        while True:
            request.wfile.write(b" " * 2**16)

    liar.search = endless
    _, error = fetch.fetch(hospital.asks(liar.url))
    assert error is not None and error.code == "PACS_ANSWER" and "too large" in error.sentence


def test_a_redirect_is_not_followed(liar: Liar, hospital: Hospital) -> None:
    def elsewhere(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", "/dicom-web/elsewhere")
        request.send_header("Content-Length", "0")
        request.end_headers()

    liar.search = elsewhere
    _, error = fetch.fetch(hospital.asks(liar.url))
    assert error is not None and error.code == "PACS_ANSWER" and "redirect" in error.sentence
    assert not any("elsewhere" in path for path in liar.asked)


@pytest.mark.parametrize(("status", "code"), [(401, "PACS_DENIED"), (503, "PACS_UNREACHABLE"), (500, "PACS_ANSWER")])
def test_a_refusal_ends_the_run_with_its_reason(liar: Liar, hospital: Hospital, status: int, code: str) -> None:
    liar.wado = lambda request: request.send_error(status)
    report, error = fetch.fetch(hospital.asks(liar.url))
    assert error is not None and error.code == code
    assert report.missing == 1 and report.refused == {}


def test_a_study_without_patient_id_is_left_out(liar: Liar, hospital: Hospital) -> None:
    liar.patient = None
    report, error = fetch.fetch(hospital.asks(liar.url))
    assert error is None and report.skipped == {"NO_PATIENT": 1} and liar.wado_asked() == 0


def test_a_pacs_that_repeats_a_page_is_not_asked_for_ever(liar: Liar, hospital: Hospital) -> None:
    body = b'[{"0020000D": {"Value": ["1.2"]}}]'
    liar.search = lambda request: reply(request, body)
    report, _ = fetch.fetch(hospital.asks(liar.url))
    assert report.studies == 1 and len(liar.asked) == 2


def test_an_opt_out_list_that_cannot_be_read_stops_everything(liar: Liar, hospital: Hospital, image: bytes) -> None:
    (hospital.folder / "opt_out.csv").write_text("no column\n")
    _, error = fetch.fetch(hospital.asks(liar.url))
    assert error is not None and error.code.startswith("OPT_OUT") and liar.asked == []


def test_the_space_that_must_stay_free_is_left(liar: Liar, hospital: Hospital, image: bytes) -> None:
    liar.wado = lambda request: reply(request, part(image), MULTIPART)
    config = hospital.asks(liar.url)
    greedy = (hospital.folder / "silo.toml").read_text().replace("free_mb = 0", "free_mb = 1_000_000_000")
    (hospital.folder / "silo.toml").write_text(greedy)
    report, error = fetch.fetch(Config.load(config.folder, {}))
    assert isinstance(error, DiskFull) and report.missing == 1 and liar.wado_asked() == 0


def test_one_run_fetches_at_most_what_the_settings_say_and_the_next_goes_on(
    liar: Liar, hospital: Hospital, tmp_path: Path
) -> None:
    liar.instances = [f"1.2.3.4.{number}" for number in range(5)]

    def right(request: BaseHTTPRequestHandler) -> None:
        sop = request.path.rpartition("/")[2]
        reply(request, part(write_dicom(tmp_path / f"{sop}.dcm", sop=sop).read_bytes()), MULTIPART)

    liar.wado = right
    config = hospital.asks(liar.url, "max_instances = 2")
    assert [(report.got, report.missing) for report in (fetch.fetch(config)[0] for _ in range(3))] == [
        (2, 3),
        (2, 1),
        (1, 0),
    ]
    searched = len(liar.asked)
    fetch.fetch(config)
    assert [path for path in liar.asked[searched:] if "/instances" in path] == [], "an unchanged study was listed again"


def test_what_the_data_folder_holds_is_not_fetched(liar: Liar, hospital: Hospital) -> None:
    write_dicom(hospital.data / "mine.dcm", sop=SOP)
    config = hospital.asks(liar.url)
    scanning.scan(config)
    report, error = fetch.fetch(config)
    assert error is None and (report.got, report.missing, liar.wado_asked()) == (0, 0, 0)


def test_two_fetches_of_one_silo_do_not_run_at_once(liar: Liar, hospital: Hospital, image: bytes) -> None:
    config = hospital.asks(liar.url)
    caught: list[SiloError] = []

    def second(request: BaseHTTPRequestHandler) -> None:
        try:
            fetch.fetch(config)
        except SiloError as error:
            caught.append(error)
        reply(request, part(image), MULTIPART)

    liar.wado = second
    report, _ = fetch.fetch(config)
    assert report.got == 1 and [error.code for error in caught] == ["ALREADY_RUNNING"]


def test_pacs_db_of_a_newer_version_is_refused_and_a_damaged_one_named(liar: Liar, hospital: Hospital) -> None:
    config = hospital.asks(liar.url)
    with sqlite3.connect(config.pacs_db) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(SiloError, match="UPGRADE_NEEDED"):
        fetch.fetch(config)
    config.pacs_db.write_bytes(b"no database at all" * 100)
    with pytest.raises(SiloError, match="PACS_DB_DAMAGED"):
        fetch.fetch(config)
