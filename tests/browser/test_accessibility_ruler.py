"""The ruler of the browser tests measures: a page with known faults is not said to be without."""

from __future__ import annotations

import pytest

from tests.browser.browsing import EXECUTABLE, accessibility_faults, chromium, new_page

pytestmark = pytest.mark.skipif(not EXECUTABLE.exists(), reason="needs Debian's chromium")
GOOD = "<html lang=en><head><title>A page</title></head><body><main><h1>Words</h1>{}</main></body></html>"


def test_known_faults_are_found_and_a_plain_page_has_none():
    with chromium() as browser:
        page = new_page(browser)
        page.set_content(GOOD.format("<p>Enough contrast.</p>"))
        assert accessibility_faults(page) == []
        page.set_content(GOOD.format("<p style='color: #bbb'>Too pale.</p><img src='data:,'><h4>Too deep</h4>"))
        found = " ".join(accessibility_faults(page))
        assert all(f"axe {rule}" in found for rule in ("color-contrast", "image-alt", "heading-order"))
