"""Logs: one JSON object a line through structlog, for our lines and for those of Django, Celery and granian.

Log lines carry ids and codes. Values under names that sound like secrets are cut out, whoever logs them.
"""

from __future__ import annotations

import logging
import logging.config
import os
from typing import Any

import structlog

_SECRET_WORDS = ("password", "passphrase", "secret", "token", "authorization", "cookie", "signature", "private")


def hide_secrets(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    """Structlog processor: replaces the value of every key that sounds like a secret."""
    for name in event:
        if any(word in name.lower() for word in _SECRET_WORDS):
            event[name] = "[hidden]"
    return event


def _shared() -> list[Any]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        hide_secrets,
    ]


def logging_settings() -> dict[str, Any]:
    """Settings for logging.config: everything to stderr as JSON; CONSILIUM_LOG_LEVEL (default INFO)."""
    formatter = {
        "()": structlog.stdlib.ProcessorFormatter,
        "processors": [
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        "foreign_pre_chain": _shared(),
    }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": formatter},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
        "root": {"handlers": ["stderr"], "level": os.environ.get("CONSILIUM_LOG_LEVEL", "INFO").upper()},
        "loggers": {"django.server": {"level": "WARNING"}, "celery.beat": {"level": "WARNING"}},
    }


def configure(settings: dict[str, Any]) -> None:
    """Called by Django (LOGGING_CONFIG) once at start."""
    logging.config.dictConfig(settings)
    structlog.configure(
        processors=[*_shared(), structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
