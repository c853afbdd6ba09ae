"""What is wrong with the consents says where, to this hospital; and never to anybody else."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from silo_node.consent import looking, registry
from silo_node.errors import SiloError
from tests.silo_node.consent.fhir_examples import consent, gics
from tests.silo_node.test_status_sources import add

URL = "http://127.0.0.1:9/fhir/Consent?_count=1"
CASES = [
    ('source = "folder"\npath = "PLACE/none"', "CONSENT_MISSING", "PLACE/none"),
    ('source = "file"\npath = "PLACE/bad.json"', "CONSENT_MALFORMED", "PLACE/bad.json"),
    (f'source = "server"\nurl = "{URL}"', "CONSENT_SERVER", URL),
    (f'source = "server"\nurl = "{URL}"\ntoken_file = "PLACE/token"', "CONSENT_TOKEN", "PLACE/token"),
    ('source = "file"\npath = "PLACE/good.json"\nmap = "PLACE/map.csv"', "CONSENT_MAP_MISSING", "PLACE/map.csv"),
]


@pytest.fixture
def elsewhere(tmp_path: Any) -> Any:
    """A folder of the hospital's that is neither the silo's nor that of the images."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    (place / "bad.json").write_text("{")
    (place / "good.json").write_text(json.dumps(consent(gics())))
    return place


@pytest.mark.parametrize(("text", "code", "where"), CASES, ids=[case[1] for case in CASES])
def test_the_terminal_and_the_status_name_the_place_and_the_portal_never_hears_it(silo, elsewhere, text, code, where):
    add(silo, "[consent]\n" + text.replace("PLACE", str(elsewhere)))
    where = where.replace("PLACE", str(elsewhere))
    with pytest.raises(SiloError) as caught:  # as the gate meets it, whose refusals go to the portal
        registry.load(silo.config, datetime.now(UTC), True)
    assert caught.value.code == code
    assert str(elsewhere) not in caught.value.sentence and "127.0.0.1" not in caught.value.sentence
    done = silo.command("consent", "status", "--folder", str(silo.folder))
    assert code in done.stderr and where in done.stderr and done.returncode in (2, 3)
    if code != "CONSENT_TOKEN":  # which only shows once the server is asked
        assert where in looking.faults(silo.config)[0].said()[0].sentence


def test_the_opt_out_list_is_named_too(silo, elsewhere):
    toml = silo.folder / "silo.toml"
    toml.write_text(f'opt_out = "{elsewhere}/list.csv"\n' + toml.read_text())
    with pytest.raises(SiloError) as caught:
        registry.load(silo.config, datetime.now(UTC), True)
    assert caught.value.code == "OPT_OUT_MISSING" and str(elsewhere) not in caught.value.sentence
    done = silo.command("consent", "status", "--folder", str(silo.folder))
    assert f"{elsewhere}/list.csv" in done.stderr and "scan again" not in done.stderr


def test_a_list_that_is_gone_says_what_to_do(silo):
    (silo.folder / "opt_out.csv").write_text("PatientID,date\n")
    registry.load(silo.config, datetime.now(UTC), True)
    (silo.folder / "opt_out.csv").unlink()
    [fault] = looking.faults(silo.config)
    assert "bring it back" in fault.error.sentence and str(silo.folder) in fault.error.sentence
