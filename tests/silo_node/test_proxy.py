"""The proxy on the way to the portal: from silo.toml or the environment, the same for the silo and its doctor."""

from __future__ import annotations

import os

import pytest

from silo_node import proxy
from silo_node.config import Config
from silo_node.errors import UsageError
from silo_node.health.doctor_network import Target
from tests.silo_node import faults

CHECKPOINT = "/api/v1/log/silo-checkpoint"


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def config(tmp_path, more=""):
    (tmp_path / "silo.toml").write_text(
        f'name = "site-1"\nportal = "https://portal.example.org"\ndata = "{tmp_path}"\n{more}'
    )
    return Config.load(tmp_path, {})


def test_all_that_goes_to_the_portal_goes_through_the_proxy_of_the_settings(silo, portal, tmp_path):
    authority, pem = faults.certificate(tmp_path)
    faults.with_tls(portal.server, pem)
    between = faults.Proxy()
    silo.settings(
        f'name = "{portal.silo}"\nportal = "{portal.address.replace("http:", "https:")}"\ndata = "{tmp_path / "data"}"\n'
        f'ca_bundle = "{authority}"\nproxy = "{between.address}"\n'
    )
    node = silo.node()
    try:
        node.egress.post(CHECKPOINT, {"note": "x"}, kind="silo-checkpoint")
    finally:
        node.close()
        between.close()
    assert portal.silo_notes == ["x"]
    assert between.asked == [portal.address.removeprefix("http://")]
    assert Target.of(silo.config).proxy == ("127.0.0.1", int(between.address.rsplit(":", 1)[1]))


def test_the_environment_wins_and_no_proxy_wins_over_both(tmp_path, monkeypatch):
    of_settings = config(tmp_path, 'proxy = "http://a.example:3128"\n')
    assert proxy.of(of_settings) == "http://a.example:3128"
    monkeypatch.setenv("HTTPS_PROXY", "b.example:3128")
    assert proxy.of(of_settings) == "http://b.example:3128"
    monkeypatch.setenv("NO_PROXY", "example.org")
    assert proxy.of(of_settings) is None
    assert proxy.of(config(tmp_path)) is None


BAD = [
    "socks5://proxy:1080",
    "https://u:secret@proxy:99999",
    "http://u:secret@",
    "http://u:secret@a b:3128",
    "ftp://proxy",
]


@pytest.mark.parametrize("address", BAD)
def test_an_address_that_cant_be_used_is_named_without_its_password_before_anything_is_sent(silo, monkeypatch, address):
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, address)
    with pytest.raises(UsageError, match="HTTPS_PROXY") as found:
        proxy.of(silo.config)
    assert "secret" not in found.value.sentence
    done = silo.command("approve", str(silo.folder), "--list")
    assert done.returncode == 2 and done.stderr.startswith("PROXY_ADDRESS") and "secret" not in done.stderr


@pytest.mark.parametrize("address", BAD)
def test_settings_with_such_an_address_are_refused(tmp_path, address):
    with pytest.raises(UsageError, match="proxy") as found:
        config(tmp_path, f'proxy = "{address}"\n')
    assert "secret" not in found.value.sentence
