"""A round of 200 silos at the real portal: minutes, most of them the silos' own work, so not in `make test`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.platform.conftest import portal_home  # noqa: F401 - a fixture
from tests.platform.federation.conftest import eager, network  # noqa: F401 - fixtures
from tests.platform.federation.meter import metered

N = 200


@pytest.mark.timeout(3600)
def test_portal_needs_few_queries_for_a_message_of_two_hundred_silos(network: Any, monkeypatch: Any) -> None:  # noqa: F811
    meter = metered(network, monkeypatch, N)
    assert meter.verified() <= N * 10
    meter.check_queries()
