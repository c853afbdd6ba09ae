"""Lists as the pages show them: searched, filtered, sorted, paged and exported, all from the query string.

A view names what may be sorted and filtered; anything else in the query string is ignored, so that a reader's link can
never order by a column that the page does not show. It knows no app: every app's views may use it.
"""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from django.core.paginator import Page, Paginator
from django.http import HttpRequest, StreamingHttpResponse

PAGE_SIZE = 25
# A spreadsheet takes a cell that starts with one of these for a formula; the last four are their full-width forms.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


@dataclass(frozen=True)
class Choice:
    """A filter with a fixed list of values. `apply(rows, value)` narrows the rows."""

    name: str
    label: str
    options: Sequence[tuple[str, str]]
    apply: Callable[[Any, str], Any]


@dataclass
class Filter:
    """A `Choice` together with the value that this request chose ("" for all)."""

    name: str
    label: str
    options: Sequence[tuple[str, str]]
    value: str


@dataclass
class Listing:
    """What `components/filters.html`, `{% sort %}` and `{% pager %}` need of one list."""

    page: Page
    rows: Any
    filters: list[Filter]
    searchable: bool
    search: str
    sort: str
    query: dict[str, str]
    path: str
    export_path: str | None = None
    sorts: Mapping[str, Any] = field(default_factory=dict)

    def href(self, **changed: str) -> str:
        """This list with some parameters changed; changing the order or a filter starts at page one."""
        query = {**self.query, **changed}
        if "page" not in changed:
            query.pop("page", None)
        return _with_query(self.path, query)

    def order_of(self, key: str) -> str | None:
        return {key: "ascending", f"-{key}": "descending"}.get(self.sort)

    def next_sort(self, key: str) -> str:
        return f"-{key}" if self.sort == key else key

    @property
    def filtered(self) -> bool:
        return bool(self.search) or any(each.value for each in self.filters)

    @property
    def previous_href(self) -> str:
        return self.href(page=str(self.page.previous_page_number()))

    @property
    def next_href(self) -> str:
        return self.href(page=str(self.page.next_page_number()))

    @property
    def export_href(self) -> str | None:
        if self.export_path is None:
            return None
        return _with_query(self.export_path, {key: value for key, value in self.query.items() if key != "page"})


def listing(
    request: HttpRequest,
    rows: Any,
    *,
    sorts: Mapping[str, str | Callable[[Any], Any]],
    default: str,
    filters: Sequence[Choice] = (),
    search: Callable[[Any, str], Any] | None = None,
    export_path: str | None = None,
    size: int = PAGE_SIZE,
) -> Listing:
    """One list for one request.

    `rows`: a QuerySet or a list. `sorts`: key in the query string -> field of the QuerySet, or a key function for a list.
    `default`: a key, led by "-" for descending.
    """
    query = {
        key: value
        for key in ("q", "sort", "page", *(each.name for each in filters))
        # PostgreSQL holds no text with NUL in it: nothing can be found by one, and asking for it is an error.
        if (value := request.GET.get(key, "").replace("\x00", ""))
    }
    chosen = []
    for each in filters:
        value = query.get(each.name, "")
        if value not in {option for option, _ in each.options}:
            value = ""
            query.pop(each.name, None)
        if value:
            rows = each.apply(rows, value)
        chosen.append(Filter(each.name, each.label, each.options, value))
    text = query.get("q", "").strip()
    if search is not None and text:
        rows = search(rows, text)
    sort = query.get("sort", default)
    if sort.removeprefix("-") not in sorts:
        sort = default
        query.pop("sort", None)
    by = sorts[sort.removeprefix("-")]
    descending = sort.startswith("-")
    if callable(by):
        rows = sorted(rows, key=by, reverse=descending)
    else:
        rows = rows.order_by(f"-{by}" if descending else by, "pk")
    page = Paginator(rows, size).get_page(query.get("page"))
    return Listing(page, rows, chosen, search is not None, text, sort, query, request.path, export_path, sorts)


def csv_answer(name: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> StreamingHttpResponse:
    """`rows` as a CSV file to download. Cells that a spreadsheet would run as a formula are led by an apostrophe."""
    writer = csv.writer(_Echo())
    lines = (writer.writerow([_cell(value) for value in row]) for row in (header, *rows))
    answer = StreamingHttpResponse(lines, content_type="text/csv; charset=utf-8")
    answer["Content-Disposition"] = f'attachment; filename="{name}"'
    return answer


class _Echo:
    """A file that hands back what is written to it."""

    def write(self, value: str) -> str:
        return value


def _cell(value: object) -> object:
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value


def _with_query(path: str, query: Mapping[str, str]) -> str:
    return f"{path}?{urlencode(query)}" if query else path
