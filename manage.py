#!/usr/bin/env python
"""Django's entry. Puts `platform/` on the path as a source root.

`platform/` is a folder of packages and never a package itself: with an `__init__.py` there, `import platform` anywhere
would find it instead of the standard library's module, and uuid, pip, torch and Django would break.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def main() -> None:
    """Run one management command with the demo's settings unless DJANGO_SETTINGS_MODULE says otherwise."""
    for folder in (ROOT / "platform", ROOT):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings.demo")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
