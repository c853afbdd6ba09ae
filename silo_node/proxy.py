"""Which proxy stands on the way to the portal, for all that goes there: egress.py and `silo doctor`.

The environment wins (HTTPS_PROXY, ALL_PROXY), so that one shell can try another way; else `proxy` in silo.toml, which a
service has without an environment of its own. What NO_PROXY names is reached without either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment

from silo_node.errors import UsageError

if TYPE_CHECKING:
    from silo_node.config import Config

WRITE: Final = "Write it as http://HOST:PORT, with http:// also where the portal is https://."


def of(config: Config) -> str | None:
    """http://[NAME:PASSWORD@]HOST:PORT, None without one. Raises: UsageError PROXY_ADDRESS, which does not quote it."""
    portal, environment = urlsplit(config.portal), getproxies_environment()
    text, where = environment.get(portal.scheme) or environment.get("all", ""), "the environment (HTTPS_PROXY)"
    if not text:
        text, where = config.settings.proxy, "silo.toml"
    if not text:
        return None
    port = portal.port or (443 if portal.scheme == "https" else 80)
    if proxy_bypass_environment(f"{portal.hostname}:{port}", environment):
        return None
    try:
        return address(text)
    except ValueError:
        raise UsageError(f"The proxy's address in {where} can't be used.", "PROXY_ADDRESS") from None


def address(text: str) -> str:
    """With its scheme, which is often left out. Raises: ValueError for what is no address of an HTTP proxy."""
    url = text if "://" in text else f"http://{text}"
    parts = urlsplit(url)
    _ = parts.port  # urlsplit looks at it only when it is asked
    if parts.scheme != "http" or not parts.hostname or any(each.isspace() for each in url):
        raise ValueError("must be http://HOST:PORT, with http:// also where the portal is https://")
    return url
