"""One machine, no TLS: `make demo`, the benchmarks and development. DEBUG stays off unless CONSILIUM_DEBUG=1."""

from portal.settings import environment
from portal.settings.base import *  # noqa: F403
from portal.settings.base import ROOT, broker_settings, home_settings

CONSILIUM_NAME = environment.log_origin()
globals().update(home_settings(environment.home(ROOT / "var" / "portal")))
_home = globals()["CONSILIUM_HOME"]
SECRET_KEY = environment.secret_key(default=_home / "keys" / "secret.key")
DEBUG = environment.flag("CONSILIUM_DEBUG")
ALLOWED_HOSTS = environment.words("ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]")
# NORMAL: a commit survives kill -9; only a power cut may lose the last ones, which a demo can live with.
DATABASES = {
    "default": environment.database(
        environment.text("DATABASE_URL", f"sqlite://{_home / 'db.sqlite3'}"), synchronous="NORMAL"
    )
}
globals().update(broker_settings(environment.broker(environment.text("BROKER_URL", "redis://127.0.0.1:6379/0"))))
EMAIL_BACKEND = "django.core.mail.backends.dummy.EmailBackend"
