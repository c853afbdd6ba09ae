"""A network's portal behind a proxy that ends TLS. Nothing has a default that would be unsafe."""

from django.core.exceptions import ImproperlyConfigured

from portal.settings import environment
from portal.settings.base import *  # noqa: F403
from portal.settings.base import STORAGES, broker_settings, home_settings

if environment.flag("CONSILIUM_DEBUG"):
    raise ImproperlyConfigured("CONSILIUM_DEBUG=1 is refused in production: debug pages show settings and data.")
DEBUG = False
CONSILIUM_NAME = environment.log_origin()
globals().update(home_settings(environment.home()))
SECRET_KEY = environment.secret_key()
ALLOWED_HOSTS = environment.words("ALLOWED_HOSTS")
if not ALLOWED_HOSTS or "*" in ALLOWED_HOSTS:
    raise ImproperlyConfigured("ALLOWED_HOSTS must list the portal's host names, separated by commas (and never *).")
CSRF_TRUSTED_ORIGINS = [f"https://{host}" for host in ALLOWED_HOSTS]
DATABASES = {
    "default": environment.database(
        environment.text("DATABASE_URL", f"sqlite://{globals()['CONSILIUM_HOME'] / 'db.sqlite3'}"), synchronous="FULL"
    )
}
globals().update(broker_settings(environment.broker(environment.text("BROKER_URL"))))
if globals()["REDIS_ADDRESS"] is None:
    raise ImproperlyConfigured("BROKER_URL=memory:// is for tests: replays would be remembered by one process only.")

SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
# Sign-ins are limited an address. Behind the proxy all people would share its address, and one attacker could use up the
# limit for everybody; so the proxy appends the address that it saw (docker/nginx.conf), and the last one counts.
ALLAUTH_TRUSTED_PROXY_COUNT = environment.number("CONSILIUM_PROXIES", 1)
SECURE_SSL_REDIRECT = True
SECURE_REDIRECT_EXEMPT = [r"^healthz$", r"^readyz$"]
SECURE_HSTS_SECONDS = 31_536_000
SECURE_HSTS_INCLUDE_SUBDOMAINS = True
# Whether browsers ship a domain in their HSTS preload list is its owner's decision.
SILENCED_SYSTEM_CHECKS = ["security.W021"]
SESSION_COOKIE_SECURE = True
SESSION_COOKIE_NAME = "__Host-consilium"
CSRF_COOKIE_SECURE = True
CSRF_COOKIE_NAME = "__Host-consilium-csrf"
STATIC_ROOT = globals()["CONSILIUM_HOME"] / "static"
STORAGES = {**STORAGES, "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"}}
WHITENOISE_USE_FINDERS = False
