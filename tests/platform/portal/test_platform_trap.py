"""`platform` stays the standard library's module although the portal lives in a folder of that name."""

import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_platform_is_the_standard_librarys_module():
    assert platform.system() in ("Linux", "Darwin", "Windows")
    assert not Path(platform.__file__).is_relative_to(ROOT)


def test_platform_folder_is_no_package():
    assert not (ROOT / "platform" / "__init__.py").exists()


def test_import_platform_from_the_project_root_finds_the_standard_library():
    code = "import platform, uuid; print(platform.system(), uuid.uuid4())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_init_file_below_tests():
    assert not list((ROOT / "tests").rglob("__init__.py"))
