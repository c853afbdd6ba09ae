"""silo.toml: checked at the start, each fault named with its place."""

from __future__ import annotations

import pytest

from silo_node.config import Config
from silo_node.errors import UsageError

GOOD = 'name = "site-1"\nportal = "https://portal.example.org"\ndata = "images"\n'


def load(tmp_path, text, environment=None):
    (tmp_path / "silo.toml").write_text(text)
    return Config.load(tmp_path, environment or {})


def test_defaults(tmp_path):
    config = load(tmp_path, GOOD)
    assert config.data == tmp_path / "images"
    assert config.labels == tmp_path / "images" / "labels.csv"
    assert config.opt_out is None
    assert not config.settings.training.allow_constant


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "name: is missing"),
        (GOOD + "colour = 1\n", "colour: is not a setting"),
        (GOOD.replace("site-1", "Site 1"), "name: must be"),
        (GOOD.replace("https://portal.example.org", "portal"), "portal: must be an address"),
        (GOOD.replace("portal.example.org", "portal.example.org/api"), "portal: must be scheme, host and port only"),
        (GOOD.replace("https", "http"), "must be https://"),
        (GOOD + "[training]\nthreads = 0\n", "training.threads"),
        (GOOD + '[training]\nthreads = "2"\n', "training.threads"),
        (GOOD + "[limits]\nopt_out_hours = 48\n", "limits.opt_out_hours"),
        (GOOD + "[limits]\nheartbeat = 30.0\n", "limits.heartbeat"),
        (GOOD + '[broker]\nurl = "amqp://x"\n', "broker.url"),
        (GOOD.replace("portal.example.org", "portal.example.org:https"), "portal: the port must be a number"),
        (GOOD.replace("portal.example.org", "portal.example.org:99999"), "portal: the port must be a number"),
        (GOOD + '[dicomweb]\nurl = "https://pacs.example:x/dicom-web"\n', "dicomweb.url: the port must be a number"),
        (GOOD + '[consent]\nurl = "https://fhir.example:x/Consent"\n', "consent.url: the port must be a number"),
        ("name = ", "not TOML"),
        (GOOD + "[training]\nnice = 1\n[training]\nthreads = 2\n", "add to what is there"),
        (GOOD + '[training]\nthreads = "2"\n', 'training.threads: is "2", must be a whole number'),
        (GOOD + "[training]\nthreads = 0\n", "training.threads: is 0, must be at least 1"),
        (GOOD + '[training]\nallow_constant = "yes"\n', 'training.allow_constant: is "yes", must be true or false'),
        (GOOD + '[training]\nnetworks = "densenet"\n', 'training.networks: is "densenet", must be a list'),
        (GOOD + '[training]\ndevice = "gpu"\n', 'training.device: is "gpu", must be of the form'),
        (GOOD + "[limits]\nheartbeat = 30.0\n", "limits.heartbeat: is 30.0, must be at most 8"),
        (
            GOOD + '[consent]\nsource = "x"\n',
            "consent.source: is \"x\", must be one of '', 'folder', 'file' or 'server'",
        ),
        ("training = 1\n" + GOOD, "training: is 1, must be a table"),
        (GOOD.replace('"site-1"', "1"), "name: is 1, must be a text in quotes"),
        (GOOD + '[receiver]\nport = 11112\nae_title = "S"\npeers = []\n', "receiver.peers: is [], must be not empty"),
    ],
)
def test_a_fault_is_named(tmp_path, text, said):
    with pytest.raises(UsageError) as caught:
        load(tmp_path, text)
    assert said in caught.value.sentence
    assert "silo.toml" in caught.value.sentence
    assert "Input should" not in caught.value.sentence


def test_the_environment_wins(tmp_path):
    config = load(
        tmp_path,
        GOOD + "[training]\nthreads = 1\n",
        {"SILO_PORTAL": "http://127.0.0.1:8000", "SILO_TRAINING_THREADS": "4", "SILO_TRAINING_ALLOW_CONSTANT": "1"},
    )
    assert config.portal == "http://127.0.0.1:8000"
    assert config.settings.training.threads == 4
    assert config.settings.training.allow_constant


@pytest.mark.parametrize("variable", ["SILO_TRAINING_THREADS", "SILO_TRAINING_ALLOW_CONSTANT"])
def test_a_wrong_variable_is_named(tmp_path, variable):
    with pytest.raises(UsageError, match=variable):
        load(tmp_path, GOOD, {variable: "many"})


def test_without_tls_only_on_this_machine_or_by_a_dangerous_name(tmp_path):
    assert load(tmp_path, GOOD.replace("https://portal.example.org", "http://localhost:8000"))
    assert load(tmp_path, "unsafe_plain_http = true\n" + GOOD.replace("https", "http"))


def test_a_folder_with_a_space_is_named_as_it_must_be_typed(tmp_path):
    with pytest.raises(UsageError) as caught:
        Config.load(tmp_path / "my silo", {})
    assert f"silo init '{tmp_path.resolve()}/my silo' --name" in caught.value.sentence


def test_a_folder_that_is_no_silo(tmp_path):
    with pytest.raises(UsageError, match="silo init"):
        Config.load(tmp_path / "nowhere", {})


@pytest.mark.parametrize("name", ["opt_out.csv", "opt-out.csv"])
@pytest.mark.parametrize("place", [".", "images"])
def test_an_opt_out_list_is_found_under_each_of_its_names(tmp_path, name, place):
    (tmp_path / "images").mkdir()
    (tmp_path / place / name).write_text("PatientID,date\n")
    assert load(tmp_path, GOOD).opt_out == tmp_path / place / name


def test_two_opt_out_lists_are_one_too_many_unless_one_is_named(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "opt_out.csv").write_text("PatientID,date\n")
    (tmp_path / "images" / "opt-out.csv").write_text("PatientID,date\n")
    with pytest.raises(UsageError, match=r"opt_out\.csv in the silo's folder, opt-out\.csv in the data folder"):
        assert load(tmp_path, GOOD).opt_out
    assert load(tmp_path, GOOD + 'opt_out = "opt_out.csv"\n').opt_out == tmp_path / "opt_out.csv"
