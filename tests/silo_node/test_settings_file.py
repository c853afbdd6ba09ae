"""The silo.toml that `silo init` writes: it is loaded as it is, and names every setting with its default."""

from __future__ import annotations

import tomllib

from pydantic import BaseModel

from silo_node.commands.settings_file import first_settings
from silo_node.config import Config, Settings

TEXT = first_settings(name="site-1", portal="https://portal.example.org", data="/srv/images").decode()
IN_THEIR_OWN_PAGE = {"dicomweb", "receiver"}


def uncommented(text: str) -> str:
    """With each `# setting = ...` in force."""
    lines = []
    for line in text.splitlines():
        word = line.removeprefix("# ")
        lines.append(word if " = " in word and word.split(" = ")[0].isidentifier() else line)
    return "\n".join(lines)


def test_it_is_loaded_as_it_is(tmp_path):
    (tmp_path / "silo.toml").write_text(TEXT)
    config = Config.load(tmp_path, {})
    assert config.settings == Settings(name="site-1", portal="https://portal.example.org", data="/srv/images")


def test_it_names_every_setting_with_its_default():
    head, _, _ = TEXT.partition("# Images from the PACS")
    shown = tomllib.loads(uncommented(head))
    defaults = Settings(name="site-1", portal="https://portal.example.org", data="/srv/images")
    for name, field in Settings.model_fields.items():
        if name in IN_THEIR_OWN_PAGE:
            assert f"[{name}]" in TEXT
            continue
        assert name in shown, name
        value = getattr(defaults, name)
        if isinstance(value, BaseModel):
            assert {**shown[name]} == value.model_dump(mode="json"), name
        elif field.is_required() or name in ("unsafe_plain_http", "keep_copies"):
            assert shown[name] == value


def test_the_tables_of_a_pacs_are_loaded_once_they_are_in_force():
    _, _, tables = TEXT.partition("all their settings.\n")
    lines = [line.removeprefix("#").strip() for line in tables.splitlines()]
    head = 'name = "site-1"\nportal = "https://portal.example.org"\ndata = "/srv"\n'
    values = tomllib.loads(head + "\n".join(lines))
    values["receiver"]["peers"] = tuple(values["receiver"]["peers"])
    found = Settings.model_validate(values).receiver
    assert found is not None and found.tls_cert and found.tls_key and found.tls_ca
