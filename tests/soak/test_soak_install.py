"""`pip install .[silo]` into an empty environment: what hospital IT types, with the real installer. Needs a package index."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_silo_installs_into_an_empty_environment_without_django_and_answers(tmp_path: Path) -> None:
    def call(*words: object) -> str:
        done = subprocess.run([*map(str, words)], cwd=tmp_path, capture_output=True, text=True, timeout=1500)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call(sys.executable, "-m", "venv", tmp_path / "empty")
    pip = tmp_path / "empty" / "bin" / "pip"
    call(pip, "install", "--quiet", "torch==2.13.0")
    call(pip, "install", "--quiet", f"{ROOT}[silo]")
    names = {line.split("==")[0].lower() for line in call(pip, "list", "--format", "freeze").splitlines()}
    assert "pydicom" in names
    assert not {name for name in names if "django" in name}
    silo = tmp_path / "empty" / "bin" / "silo"
    assert call(silo, "version").strip()
    assert "enrol" in call(silo, "--help")
