"""Where consents come from: folders, Bundles, NDJSON, a server's pages; and whose each of them is."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from silo_node.consent import fhir, fhir_json, server, sources
from silo_node.consent.patients import Patients, load_map
from silo_node.consent.sources import ConsentError
from silo_node.imaging.errors import TableError
from tests.silo_node.consent.fhir_examples import consent, gics, mii

SYSTEM = "urn:oid:1.2.276.0.76.3.1"
HEAD = "reference,PatientID\n"


def bundle(*resources: Any, kind: str = "collection", **more: Any) -> dict[str, Any]:
    return {"resourceType": "Bundle", "type": kind, "entry": [{"resource": each} for each in resources], **more}


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def whose(found: sources.Found, **how: Any) -> list[str | None]:
    patients = Patients(found.patients, **how)
    return [patients.of(fhir.parse(body)) for body in found.distinct()]


def test_a_folder_of_everything_is_read(tmp_path):
    write(tmp_path / "a.json", consent(gics(), "1"))
    write(tmp_path / "b/c.JSON", bundle(consent(mii(), "2"), {"resourceType": "Provenance"}, consent(gics(), "3")))
    lines = [consent(gics(), "4"), bundle(consent(gics(), "5"))]
    write(tmp_path / "d.ndjson", "\n\n".join(json.dumps(line) for line in lines))
    write(tmp_path / "readme.txt", "not read")
    found = sources.whole(sources.read(tmp_path))
    assert whose(found) == ["1", "2", "3", "4", "5"]
    assert (found.files, found.others, found.passed_over) == (3, 1, 1)


@pytest.mark.parametrize("name", ["b.xml", "B.XML", "inner/b.json.gz", "b.zip", "b.jsonl"])
def test_a_file_in_another_form_may_be_somebodys_no_and_refuses_the_whole_folder(tmp_path, name):
    write(tmp_path / "a.json", consent(gics()))
    write(tmp_path / name, "<Consent/>")
    [problem] = sources.read(tmp_path).problems
    assert "export it as JSON" in str(problem) and problem.path == tmp_path / name


def test_the_same_resource_in_two_files_counts_once(tmp_path):
    for name in ("a.json", "b.json"):
        write(tmp_path / name, consent(gics()))
    write(tmp_path / "c.json", consent(gics("deny")))
    assert len(sources.read(tmp_path).distinct()) == 2


def test_what_is_kept_reads_back_the_same(tmp_path):
    identifier = {"system": SYSTEM, "value": "4711"}
    patient = {"resourceType": "Patient", "id": "p", "name": [{"family": "Musterfrau"}], "identifier": [identifier]}
    body = consent(gics(), patient={"reference": "urn:uuid:1", "display": "Erika Musterfrau"})
    entries = [{"fullUrl": "urn:uuid:1", "resource": patient}, {"resource": body}]
    found = sources.read(write(tmp_path / "a.json", {"resourceType": "Bundle", "type": "batch", "entry": entries}))
    again = sources.read(write(tmp_path / "kept.json", found.packed().decode()))
    assert again.packed() == found.packed()
    assert whose(again, system=SYSTEM) == whose(found, system=SYSTEM) == ["4711"]
    assert whose(again) == ["p"]
    assert b"Muster" not in found.packed()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("", "is not JSON"),
        ('{"a": NaN}', "holds NaN"),
        ('{"resourceType": "Consent", "status": "active", "status": "draft"}', "one key stands twice"),
        ("[" * 100 + "]" * 100, "nested deeper"),
        ("[" * 200_000, "nested deeper"),
        ("1" * 5000, "a number that is too long"),
        ([], "no FHIR resource"),
        ({"type": "Consent"}, "no FHIR resource"),
        (bundle(consent(gics()), kind="history"), "another type"),
        ({"resourceType": "Bundle", "type": "collection", "entry": {}}, "another type"),
        (bundle(bundle()), "a Bundle inside a Bundle"),
        (bundle(None), "no FHIR resource"),
        ({"resourceType": "Bundle", "type": "batch", "entry": ["x"]}, "no entry that adds"),
        ({"resourceType": "Bundle", "type": "batch", "entry": [{"request": {"method": "DELETE"}}]}, "no entry that adds"),
        (bundle(consent(gics()), kind="searchset", link=[{"relation": "next", "url": "x"}]), "one page of a search"),
        (consent(gics(), patient={}), "nobody can assign"),
    ],
)  # fmt: skip
def test_one_unreadable_file_refuses_the_whole_source(tmp_path, content, words):
    write(tmp_path / "aa.json", consent(gics()))
    write(tmp_path / "Musterfrau^Erika.json", content)
    found = sources.read(tmp_path)
    [problem] = found.problems
    assert words in str(problem) and str(problem).startswith("file 1")
    with pytest.raises(ConsentError) as caught:
        sources.whole(found)
    assert caught.value.code == "CONSENT_MALFORMED"
    assert "Muster" not in caught.value.sentence


def test_a_line_of_ndjson_is_named(tmp_path):
    path = write(tmp_path / "a.ndjson", json.dumps(consent(gics())) + "\n\n{\n")
    assert str(sources.read(path).problems[0]).startswith("file 1, line 3 is not JSON")


def test_a_consent_that_cannot_be_read_is_told_and_does_not_stop_the_others(tmp_path):
    found = sources.whole(
        sources.read(write(tmp_path / "a.json", bundle(consent(gics(period=3)), consent(gics(), "2"))))
    )
    assert [str(each) for each in found.doubtful] == [
        "file 1, entry 1 counts as a refusal of its patient: a period is not an object"
    ]
    drafts = sources.read(write(tmp_path / "b.json", consent(gics(period=3), status="draft")))
    assert drafts.doubtful == []


def test_links_and_large_files_are_refused(tmp_path, monkeypatch):
    outside = write(tmp_path / "outside/a.json", consent(gics()))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.json").symlink_to(outside)
    (folder / "b").symlink_to(outside.parent)
    assert [each.what for each in sources.read(folder).problems] == ["has a link in it: put the file itself there"] * 2
    monkeypatch.setattr(fhir_json, "MAX_BYTES", 100)
    large = sources.read(write(tmp_path / "large/a.json", consent(gics())))
    assert "is larger than" in str(large.problems[0])


def test_a_source_that_is_not_there_is_an_error(tmp_path):
    for name in ("none", "none.json"):
        with pytest.raises(ConsentError) as caught:
            sources.read(tmp_path / name)
        assert caught.value.code == "CONSENT_MISSING"
        assert str(tmp_path) not in caught.value.sentence


@pytest.mark.parametrize(
    ("patient", "how", "expected"),
    [
        ({"reference": "Patient/17"}, {}, "17"),
        ({"reference": "Patient/17/_history/2"}, {}, "17"),
        ({"reference": "https://elsewhere.example.org/Patient/17"}, {}, None),
        ({"reference": "Patient/17/../18"}, {}, None),
        ({"reference": "urn:uuid:unknown"}, {}, None),
        ({"identifier": {"system": SYSTEM, "value": "4711"}}, {}, None),
        ({"identifier": {"system": SYSTEM, "value": "4711"}}, {"system": SYSTEM}, "4711"),
        ({"identifier": {"system": "urn:other", "value": "4711"}}, {"system": SYSTEM}, None),
        ({"reference": "Patient/17"}, {"system": SYSTEM}, "P-17"),
        ({"reference": "Patient/18"}, {"system": SYSTEM}, None),
        ({"reference": "Patient/17", "identifier": {"system": SYSTEM, "value": "X"}}, {"system": SYSTEM}, None),
        ({"reference": "Patient/17"}, {"table": {"Patient/17": "A"}}, "A"),
        ({"reference": "Patient/18"}, {"table": {"Patient/17": "A"}}, None),
        ({"identifier": {"system": SYSTEM, "value": "4711"}}, {"table": {f"{SYSTEM}|4711": "B"}}, "B"),
        (
            {"reference": "Patient/17", "identifier": {"system": SYSTEM, "value": "4711"}},
            {"table": {"Patient/17": "A", f"{SYSTEM}|4711": "B"}},
            None,
        ),
    ],
)
def test_a_consent_belongs_to_exactly_one_patient_or_to_none(patient, how, expected):
    known = {"Patient/17": {"id": "17", "identifier": [{"system": SYSTEM, "value": "P-17"}]}}
    record = fhir.parse({**consent(gics()), "patient": patient})
    assert Patients(known, **how).of(record) == expected


def test_a_whole_address_is_the_patient_who_stands_under_it_in_the_same_bundle(tmp_path):
    """As servers write references in a Bundle; the same address elsewhere may be anybody."""
    address = "https://fhir.hospital.example/fhir/Patient/17"
    entries = [
        {"fullUrl": address, "resource": {"resourceType": "Patient", "id": "17"}},
        {"resource": consent(gics(), patient={"reference": address})},
        {"resource": consent(gics("deny"), patient={"reference": f"{address}/_history/2"})},
        {"resource": consent(gics(), patient={"reference": "https://other.example/fhir/Patient/17"})},
    ]
    found = sources.read(write(tmp_path / "a.json", {"resourceType": "Bundle", "type": "searchset", "entry": entries}))
    assert whose(found) == ["17", "17", None]
    assert whose(sources.read(write(tmp_path / "b.json", entries[1]["resource"]))) == [None]


def test_two_identifiers_of_one_system_are_nobody(tmp_path):
    patient = {"resourceType": "Patient", "id": "1", "identifier": [{"system": SYSTEM, "value": v} for v in "AB"]}
    found = sources.read(write(tmp_path / "a.json", bundle(consent(gics()), patient)))
    assert whose(found, system=SYSTEM) == [None]


def test_one_patient_given_twice_with_other_identifiers_refuses_the_source(tmp_path):
    patients = [
        {"resourceType": "Patient", "id": "1", "identifier": [{"system": SYSTEM, "value": value}]} for value in "AB"
    ]
    assert "other identifiers" in str(sources.read(write(tmp_path / "a.json", bundle(*patients))).problems[0])


def test_the_map_is_read_strictly(tmp_path):
    path = write(tmp_path / "map.csv", "reference,PatientID\nPatient/1,A\nPatient/1,A\nPatient/2,B\n")
    assert load_map(path) == {"Patient/1": "A", "Patient/2": "B"}
    for content, line in (("PatientID\nA\n", 1), (HEAD + "Patient/1,A\nPatient/1,B\n", 3), (HEAD + "Patient/1,\n", 2)):
        write(path, content)
        with pytest.raises(TableError, match=rf"map\.csv, line {line} "):
            load_map(path)


# ---- the server


class Server:
    """A FHIR server that answers paths with what a test gave: (status, body, headers)."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any, dict[str, str]]] = {}
        self.asked: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.path, self.headers.get("Authorization")))
                status, body, headers = outer.answers.get(self.path, (404, {}, {}))
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever)
        self._thread.start()

    def page(self, path: str, *resources: Any, following: str | None = None, **more: Any) -> None:
        links = [{"relation": "self", "url": path}]
        if following is not None:
            links.append({"relation": "next", "url": following})
        self.answers[path] = (200, bundle(*resources, kind="searchset", link=links, **more), {})

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def fhir_server() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


OUTCOME = {"resourceType": "OperationOutcome"}
START = "/fhir/Consent?_count=2"


def ask(at: Server) -> sources.Found:
    return server.search(at.address + START, token="secret", ca_bundle=None)


def test_all_pages_of_a_search_are_read_with_the_token(fhir_server):
    patient = {"resourceType": "Patient", "id": "3", "identifier": [{"system": SYSTEM, "value": "P-3"}]}
    warning = {"resourceType": "OperationOutcome", "issue": [{"severity": "warning"}]}
    fhir_server.page(START, consent(gics(), "1"), consent(gics(), "2"), following=f"{fhir_server.address}/fhir?page=2")
    fhir_server.page("/fhir?page=2", warning, consent(gics(), "3"), patient, following="?page=3")
    fhir_server.page("/fhir?page=3")
    found = sources.whole(ask(fhir_server))
    assert whose(found) == ["1", "2", "3"]
    assert whose(found, system=SYSTEM) == [None, None, "P-3"]
    assert fhir_server.asked == [(path, "Bearer secret") for path in (START, "/fhir?page=2", "/fhir?page=3")]


ELSEWHERE = ["http://127.0.0.1:1/fhir?page=2", "https://127.0.0.1/x", "//elsewhere.example.org/x", "file:///etc/x"]


@pytest.mark.parametrize("following", [*ELSEWHERE, "http://127.0.0.1:99999/x"])
def test_a_search_never_leaves_its_server(fhir_server, following):
    fhir_server.page(START, consent(gics()), following=following)
    with pytest.raises(ConsentError, match="leads to another server"):
        ask(fhir_server)
    assert len(fhir_server.asked) == 1


@pytest.mark.parametrize("following", ["http://[bad", "//[::1", "?x=\ud800", "http://localhost:x/"])
def test_a_next_link_that_is_no_address_ends_the_search_with_its_reason(fhir_server, following):
    fhir_server.page(START, consent(gics()), following=following)
    with pytest.raises(ConsentError, match="page") as caught:
        ask(fhir_server)
    assert following not in caught.value.sentence and caught.value.code == "CONSENT_SERVER"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((401, {}, {}), "HTTP 401: check token_file"),
        ((302, {}, {"Location": "/fhir/other"}), "HTTP 302: it redirects"),
        ((500, {}, {}), "HTTP 500"),
        ((200, b"<html>", {}), "page 1 is not JSON"),
        ((200, [], {}), "no page of a search"),
        ((200, {"resourceType": "Bundle", "type": "collection"}, {}), "no page of a search"),
        ((200, bundle(kind="searchset", link=[{"relation": "next", "url": 3}]), {}), "a next link that is none"),
        ((200, bundle({**OUTCOME, "issue": [{"severity": "error"}]}, kind="searchset"), {}), "failed in part"),
        ((200, bundle(OUTCOME, kind="searchset"), {}), "failed in part"),
    ],
)  # fmt: skip
def test_half_an_answer_is_none(fhir_server, answer, words):
    fhir_server.answers[START] = answer
    with pytest.raises(ConsentError, match=words) as caught:
        ask(fhir_server)
    assert caught.value.code == "CONSENT_SERVER"
    assert fhir_server.address not in caught.value.sentence and "secret" not in caught.value.sentence
    assert len(fhir_server.asked) == 1


def test_pages_in_a_circle_or_too_large_or_too_slow_end(fhir_server, monkeypatch):
    fhir_server.page(START, consent(gics()), following=START)
    with pytest.raises(ConsentError, match="in a circle"):
        ask(fhir_server)
    monkeypatch.setattr(server, "SECONDS", -1.0)
    with pytest.raises(ConsentError, match="took longer"):
        ask(fhir_server)
    monkeypatch.setattr(fhir_json, "MAX_BYTES", 10)
    with pytest.raises(ConsentError, match="is larger than"):
        ask(fhir_server)


def test_a_server_that_is_away_or_unknown_is_told_without_its_address(fhir_server, tmp_path):
    with pytest.raises(ConsentError, match="ConnectError; is it running") as caught:
        server.search("http://127.0.0.1:1/fhir/Consent", token=None, ca_bundle=None)
    assert "127.0.0.1" not in caught.value.sentence
    with pytest.raises(ConsentError, match="authorities"):
        server.search("https://127.0.0.1:1/fhir/Consent", token=None, ca_bundle=tmp_path / "none.pem")


def test_no_proxy_ever_sees_a_consent(fhir_server, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    fhir_server.page(START, consent(gics()))
    assert len(ask(fhir_server).consents) == 1
    assert urlsplit(fhir_server.asked[0][0]).netloc == ""


@pytest.mark.parametrize("body", [{"id": "\ud800"}, {"a": [{"\udfff": 1}]}])
def test_half_a_surrogate_pair_is_refused_when_it_is_read(tmp_path, body):
    """It can be hashed and written nowhere: a patient's id of it would stop every round without a reason."""
    write(tmp_path / "a.json", {"resourceType": "Patient", **body})
    found = sources.read(tmp_path)
    assert [problem.what for problem in found.problems] == ["holds half of a character (a lone surrogate)"]
    write(tmp_path / "a.json", {"resourceType": "Patient", "id": "\U0001f600"})
    assert not sources.read(tmp_path).problems
