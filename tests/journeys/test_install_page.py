"""docs/hospital-it.md, word by word: its commands, run as they stand there, lead from nothing to a finished first round.

Also the installation, with the real installer: into an empty environment, from a folder that holds exactly what the metadata
of `consilium[silo]` asks for, so without a package index. (tests/soak/test_soak_install.py takes the packages from one.)
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from demo import synthetic
from demo.hospital import Hospital
from demo.network import Network
from demo.plan import demo_plan
from demo.processes import Process
from demo.settings import silo_name
from demo.study import draft
from tests.silo_node.test_silo_alone import closure

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "hospital-it.md"

pytestmark = pytest.mark.timeout(300)


def blocks() -> list[tuple[str, str]]:
    """(word after ```sh, commands) of the page's blocks, in their order."""
    return re.findall(r"^```sh ?(\w*)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def needed(folder: Path) -> Path:
    """A folder of links to the packages that the silo's installation asks for, and to none besides."""
    folder.mkdir()
    for name in sorted(closure("consilium", "silo") - {"consilium"}):
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another platform
        for top in {each.parts[0] for each in found.files or []} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(str(found.locate_file(top)))
    return folder


def source(folder: Path) -> Path:
    """What a hospital is given; a copy, because an installer builds in it."""
    for name in ("protocol", "silo_node", "platform"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    """Two hospitals that are there already."""
    folders = synthetic.write(tmp_path / "data", hospitals=2, images=60)
    network = Network(tmp_path / "network", {silo_name(path.name): path for path in folders}, lean=True)
    network.start()
    yield network
    network.stop()


def test_the_page_for_hospital_it_leads_from_nothing_to_a_finished_first_round(
    network: Network, tmp_path: Path
) -> None:
    admin = network.person("admin")
    folder = synthetic.write(tmp_path / "new", hospitals=1, images=60, seed=7)[0]
    (tmp_path / "passphrase").write_text("a passphrase that only the steward knows\n")
    new = Hospital(
        "site-new", "Hospital new", "DE", tmp_path / "network" / "silos" / "site-new", folder, network.portal.address
    )
    values = {
        "SILO_HOME": str(new.folder),
        "NAME": new.name,
        "PORTAL": network.portal.address,
        "IMAGES": str(folder),
        "TOKEN": network._register(admin, new),
        "PASSPHRASE": str(tmp_path / "passphrase"),
    }
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(needed(tmp_path / "packages")),
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "false",  # pip's way to say that there is none
    }
    places = {"/opt/silo": str(tmp_path / "opt"), "/path/to/consilium": str(source(tmp_path / "consilium"))}

    def run(commands: str, **more: str) -> str:
        exports = "".join(f"export {name}='{value}'\n" for name, value in {**values, **more}.items())
        done = subprocess.run(
            ["bash", "-euc", exports + commands],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, commands + done.stdout + done.stderr
        return done.stdout

    study, said = "", {}
    for kind, commands in blocks():
        if kind == "install":
            for place, here in places.items():
                commands = commands.replace(place, here)
            installed = run(commands + "command -v silo; silo version; pip list --format freeze").splitlines()
            assert f"{tmp_path}/opt/bin/silo" in installed
            assert not [line for line in installed if line.lower().startswith("django")]
            environment["PATH"] = f"{tmp_path}/opt/bin:{environment['PATH']}"
        elif kind == "values":
            assert set(re.findall(r"export (\w+)=", commands)) == set(values)
        elif kind == "background":
            new.process = Process("site-new", ["bash", "-euc", f"export SILO_HOME='{new.folder}'\nexec {commands}"],
                                  log=tmp_path / "run.log", env=environment, cwd=tmp_path)  # fmt: skip
            network.hospitals.append(new)
        elif kind == "study":
            names = [hospital.name for hospital in network.hospitals]
            study = network.submit(
                draft(silos=names, plan=demo_plan(max_rounds=1), modalities=["CR", "DX"], countries=[], title="First study",
                      summary="A first round.", min_patients=10)
            )  # fmt: skip
            network.approve_in_portal(study)
            for hospital in network.hospitals[:-1]:
                assert hospital.decide(study) is None
            run(commands, STUDY=study)
            network.wait_for(study, lambda report: any(
                row["number"] == 1 and row["stage"] == "finished" for row in report["rounds"]), seconds=120)  # fmt: skip
        else:
            said[commands] = run(commands)
            if "silo enrol" in commands:
                page = re.search(r"admin must confirm:\n\s*(.+)", said[commands])
                assert page is not None
                admin.submit(f"/silos/{new.name}/confirm/", {"fingerprint": page[1]})
    assert "'finished'" in said[next(commands for commands in said if "silo status" in commands)]
    assert "nothing was changed or removed" in "".join(said.values())
