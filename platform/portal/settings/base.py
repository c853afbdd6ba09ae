"""What is the same in the demo, in production and in tests. Every value from outside comes through `environment`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from portal.settings.logging import logging_settings

ROOT = Path(__file__).resolve().parents[3]

# -- Application ---------------------------------------------------------------------------------------------------
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "django_htmx",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "portal",
    "evidence",
    "organisations",
    "governance",
    "federation",
]
MIDDLEWARE = [
    "portal.headers.SecurityHeadersMiddleware",
    "portal.health.HealthMiddleware",  # before whatever reads the Host header
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "portal.answers.NodeAnswerMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "portal.access.AccessMiddleware",
]
ROOT_URLCONF = "portal.urls"
ASGI_APPLICATION = "portal.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [ROOT / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "portal.context.portal",
            ]
        },
    }
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LANGUAGE_CODE = "en-gb"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = True
APPEND_SLASH = True

# -- Files ---------------------------------------------------------------------------------------------------------
STATIC_URL = "/static/"
STATICFILES_DIRS = [ROOT / "static"]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
WHITENOISE_USE_FINDERS = True

# -- Limits --------------------------------------------------------------------------------------------------------
CHUNK_BYTES = 4 * 2**20  # one chunk of an update, of a sum or of a model
DATA_UPLOAD_MAX_MEMORY_SIZE = CHUNK_BYTES + 64 * 1024  # the largest body is one chunk
FILE_UPLOAD_MAX_MEMORY_SIZE = DATA_UPLOAD_MAX_MEMORY_SIZE  # so that no request body is spooled to disk
BODY_SECONDS = 120  # within which a body must be whole: 4 MiB need 35 kB/s
DATA_UPLOAD_MAX_NUMBER_FIELDS = 300
DATA_UPLOAD_MAX_NUMBER_FILES = 4
SIGNATURE_SKEW_SECONDS = 300  # clocks of portal and silo may differ by this much
SILO_LOST_SECONDS = 10  # a silo without a signed heartbeat for longer counts as lost in a round
ENROLMENT_TOKEN_HOURS = 72
EVIDENCE_EVERY_SECONDS = 10
EVIDENCE_EVERY_ENTRIES = 100

# -- People --------------------------------------------------------------------------------------------------------
AUTH_USER_MODEL = "organisations.User"
AUTHENTICATION_BACKENDS = ["allauth.account.auth_backends.AuthenticationBackend"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.ScryptPasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
LOGIN_URL = "account_login"
LOGIN_REDIRECT_URL = "/"
LOGOUT_REDIRECT_URL = "/"
MFA_ROLES = ("admin", "steward", "auditor")  # these roles count only in a session with a second factor
ACCOUNT_ADAPTER = "portal.adapters.AccountAdapter"
ACCOUNT_LOGIN_METHODS = {"username", "email"}
ACCOUNT_SIGNUP_FIELDS = ["username*", "email", "password1*"]
ACCOUNT_EMAIL_VERIFICATION = "none"
ACCOUNT_EMAIL_NOTIFICATIONS = False
ACCOUNT_LOGOUT_ON_GET = False
ACCOUNT_REAUTHENTICATION_TIMEOUT = 900
ACCOUNT_SESSION_REMEMBER = False
ACCOUNT_RATE_LIMITS = {"login": "30/m/ip", "login_failed": "30/m/ip,5/300s/key"}  # the second is the lockout
MFA_ADAPTER = "portal.adapters.MFAAdapter"
MFA_SUPPORTED_TYPES = ["totp", "recovery_codes"]
MFA_TOTP_ISSUER = "Consilium"
SESSION_COOKIE_AGE = 8 * 3600
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
SESSION_EXPIRE_AT_BROWSER_CLOSE = True
CSRF_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_HTTPONLY = True
CSRF_FAILURE_VIEW = "django.views.csrf.csrf_failure"

# -- Headers -------------------------------------------------------------------------------------------------------
X_FRAME_OPTIONS = "DENY"
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin"
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

# -- Work ----------------------------------------------------------------------------------------------------------
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TIMEZONE = "UTC"
# A task may run twice but should not: the visibility timeout is far above the longest task; what a killed worker held
# comes back sooner because the sweep makes it again from the database.
CELERY_BROKER_TRANSPORT_OPTIONS = {"visibility_timeout": 3600}
CELERY_BEAT_SCHEDULE = {
    "evidence-sequence": {"task": "evidence.sequence", "schedule": EVIDENCE_EVERY_SECONDS},
    "governance-expire": {"task": "governance.expire", "schedule": 60.0},
    "federation-sweep": {"task": "federation.sweep", "schedule": 1.0, "options": {"expires": 2.0}},
}

LOGGING_CONFIG = "portal.settings.logging.configure"
LOGGING = logging_settings()


def broker_settings(url: str) -> dict[str, Any]:
    """Settings that follow from the broker's address: Celery's queue and Django's cache (replays, rate limits)."""
    from portal.settings.environment import redis_address

    address = redis_address(url)
    if address is None:
        cache: dict[str, Any] = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": "consilium"}
    else:
        cache = {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": address,
            "KEY_PREFIX": "consilium",
        }
    return {"BROKER_URL": url, "CELERY_BROKER_URL": url, "REDIS_ADDRESS": address, "CACHES": {"default": cache}}


def home_settings(home: Path) -> dict[str, Any]:
    """Folders below CONSILIUM_HOME."""
    return {
        "CONSILIUM_HOME": home,
        "LOG_FOLDER": home / "log",
        "KEY_FOLDER": home / "keys",
        "CHUNK_FOLDER": home / "chunks",
        "MODEL_FOLDER": home / "models",
        "CELERY_BEAT_SCHEDULE_FILENAME": str(home / "celerybeat-schedule"),
    }
