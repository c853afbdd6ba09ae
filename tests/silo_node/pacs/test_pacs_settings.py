"""The tables [dicomweb] and [receiver]: what is wrong is said with its name, and nothing unsafe is a default."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from silo_node.cli import app
from silo_node.errors import UsageError
from silo_node.pacs import fetch
from tests.silo_node.pacs.conftest import Hospital


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ('url = "http://pacs.hospital.example/dicom-web"', "unsafe_plain_http"),
        ('url = "https://silo:secret@pacs.example"', "user"),
        ('url = "ftp://pacs.example"', "must be an address"),
        ('url = "https://pacs.example"\nuser = "silo"', "password_file"),
        ('url = "https://pacs.example"\nquery = { PatientName = "A*" }', "PatientName"),
        ('url = "https://pacs.example"\nquery = { StudyDate = ["1", "2"] }', "StudyDate"),
        ('url = "https://pacs.example"\nevery_minute = 5', "every_minute"),
    ],
)
def test_a_wrong_dicomweb_setting_is_named(hospital: Hospital, table: str, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        hospital.config(f"[dicomweb]\n{table}\n")


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ("peers = []", "peers"),
        ('peers = [{ ae_title = "A TITLE THAT IS TOO LONG", host = "h" }]', "AE title"),
        ('peers = [{ ae_title = "A\\\\B", host = "h" }]', "AE title"),
        ('peers = [{ ae_title = "A" }]', "host"),
        ("", "peers"),
    ],
)
def test_a_wrong_receiver_setting_is_named(hospital: Hospital, table: str, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        hospital.config(f'[receiver]\nport = 11112\nae_title = "SILO"\n{table}\n')


def test_nothing_is_asked_or_listened_to_unless_it_is_set(hospital: Hospital) -> None:
    config = hospital.config()
    assert config.settings.dicomweb is None and config.settings.receiver is None
    with pytest.raises(UsageError, match="NO_PACS"):
        fetch.fetch(config)


def test_the_receiver_is_reached_from_this_machine_only_unless_the_settings_say_more(hospital: Hospital) -> None:
    receiver = hospital.receives().settings.receiver
    assert receiver is not None and receiver.host == "127.0.0.1"


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe"])
def test_a_password_file_that_cannot_be_used_is_named(hospital: Hospital, content: bytes | None) -> None:
    config = hospital.asks("http://127.0.0.1:9", user="silo")
    path = Path(hospital.folder / "pacs.password")
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match="password_file"):
        fetch.fetch(config)


def test_a_ca_bundle_that_is_not_there_is_named(hospital: Hospital) -> None:
    with pytest.raises(UsageError, match="ca_bundle"):
        fetch.fetch(hospital.asks("http://127.0.0.1:9", 'ca_bundle = "gone.pem"'))


@pytest.mark.parametrize(("command", "table"), [("fetch", "[dicomweb]"), ("receive", "[receiver]")])
def test_the_help_shows_the_settings_as_they_are_written(command: str, table: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0 and table in shown.output
