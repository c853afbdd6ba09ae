"""Settings of the test suite: a folder of its own for every process, no broker unless BROKER_URL names one."""

import tempfile
from pathlib import Path

from portal.settings import environment
from portal.settings.base import *  # noqa: F403
from portal.settings.base import broker_settings, home_settings

CONSILIUM_NAME = environment.log_origin()
_home = environment.home(Path(tempfile.mkdtemp(prefix="consilium-test-")))
globals().update(home_settings(_home))
SECRET_KEY = environment.secret_key(default=_home / "keys" / "secret.key")
DEBUG = False
ALLOWED_HOSTS = ["testserver", "localhost", "127.0.0.1"]
DATABASES = {
    "default": environment.database(
        environment.text("DATABASE_URL", f"sqlite://{_home / 'db.sqlite3'}"), synchronous="OFF"
    )
}
if "sqlite" in DATABASES["default"]["ENGINE"]:
    # A file, not memory: threads in tests then meet the same locks as in operation.
    DATABASES["default"]["TEST"] = {"NAME": str(_home / "test.sqlite3")}
globals().update(broker_settings(environment.broker(environment.text("BROKER_URL", "memory://"))))
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # speed; never outside tests
EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
