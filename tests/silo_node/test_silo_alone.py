"""A hospital installs the silo without the portal: no Django, whatever module of it is loaded."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def closure(name: str, extra: str) -> set[str]:
    """The names of all distributions that installing NAME[EXTRA] brings, by their metadata."""
    found: set[str] = set()
    waiting = [(name, extra)]
    while waiting:
        current, wanted = waiting.pop()
        if (current, wanted) in found:
            continue
        found.add((current, wanted))  # type: ignore[arg-type]
        try:
            requires = metadata.requires(current) or []
        except metadata.PackageNotFoundError:
            continue  # for another platform
        for line in requires:
            need, _, marker = line.partition(";")
            extras = re.findall(r"extra\s*==\s*['\"]([^'\"]+)['\"]", marker)
            if extras and wanted not in extras:
                continue
            match = re.match(r"\s*([A-Za-z0-9._-]+)(?:\[([^\]]*)\])?", need)
            assert match is not None
            for inner in (match[2] or "").split(","):
                waiting.append((match[1], inner.strip()))
    return {re.sub(r"[-_.]+", "-", each[0]).lower() for each in found}


def test_installing_the_silo_brings_no_django():
    brought = closure("consilium", "silo")
    assert {"torch", "pydicom", "celery", "typer"} <= brought
    assert not {name for name in brought if "django" in name}


def test_every_module_of_the_silo_loads_without_django_or_the_portal():
    code = """
import importlib, pkgutil, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"django", "portal", "organisations", "governance", "federation", "evidence"}:
            raise ImportError("the silo imported " + name)
sys.meta_path.insert(0, Refuse())
import silo_node
names = [each.name for each in pkgutil.walk_packages(silo_node.__path__, "silo_node.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 60


def test_the_command_answers_without_loading_the_heavy_parts():
    code = """
import sys
from silo_node import cli
loaded = {name.split(".")[0] for name in sys.modules}
heavy = {"torch", "monai", "pydicom", "pynetdicom", "starlette", "fido2", "celery", "requests"} & loaded
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
