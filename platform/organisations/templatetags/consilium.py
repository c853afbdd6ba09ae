"""What every template of the portal shares: status, times, numbers with units, fields, sorting and paging.

Nothing here marks text as safe: each tag hands values to a partial under templates/components, which escapes them.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import qrcode
from django import template
from django.forms import BoundField, CheckboxInput, CheckboxSelectMultiple, RadioSelect
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from organisations import navigation, words
from protocol.duo import TERMS

register = template.Library()


@register.inclusion_tag("components/status.html")
def status(value: object, kind: str) -> dict[str, Any]:
    """Word, sign and colour of a state."""
    return {"is": words.word_for(kind, str(value))}


@register.inclusion_tag("components/icon.html")
def icon(name: str) -> dict[str, str]:
    return {"icon": name}


@register.inclusion_tag("components/moment.html")
def moment(at: datetime | str | None, form: str = "full", otherwise: str = "not yet") -> dict[str, Any]:
    """A point in time: UTC as served, the reader's zone after consilium.js; UTC stays in the title.

    `form`: "full" (day and minute), "exact" (time of day with seconds) or "day".
    """
    if isinstance(at, str):
        at = parse_datetime(at)
    if at is None:
        return {"at": None, "otherwise": otherwise}
    at = at.astimezone(UTC)
    shown = {"full": "j M Y, H:i", "exact": "H:i:s", "day": "j M Y"}[form]
    return {"at": at, "form": form, "shown": shown, "zone": form != "day", "iso": at.strftime("%Y-%m-%dT%H:%M:%SZ")}


@register.filter("bytes")
def in_bytes(value: int | None) -> str:
    """12345 -> "12 kB" (decimal units, as network operators count)."""
    if value is None:
        return "–"
    size = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.5 else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("the loop returns at its last unit")


@register.filter
def seconds(value: float | None) -> str:
    """5.13 -> "5.1 s", 75 -> "1 min 15 s", 4000 -> "1 h 7 min", None -> "–"."""
    if value is None:
        return "–"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


@register.filter
def figure(value: int | float | None, digits: int = 0) -> str:
    """A number with thousands set apart: 31954 -> "31,954"."""
    return "–" if value is None else f"{value:,.{digits}f}"


@register.filter
def auc(value: float | str | None) -> str:
    """0.8421 -> "0.842"; what a template found missing ("") and None -> "–"."""
    return f"{value:.3f}" if isinstance(value, (int, float)) else "–"


@register.filter
def short(digest: str | None) -> str:
    """First eight characters of a digest or key id in two groups: "sha256:3f9a61c2.." -> "3f9a 61c2"."""
    if not digest:
        return "–"
    text = str(digest).rpartition(":")[2]
    return f"{text[:4]} {text[4:8]}"


@register.filter
def item(mapping: Mapping[str, Any] | None, key: str) -> Any:
    return (mapping or {}).get(key)


@register.filter
def since(at: datetime | None) -> float | None:
    """Seconds from `at` to now."""
    return None if at is None else (timezone.now() - at).total_seconds()


@register.inclusion_tag("components/field.html")
def field(bound: BoundField, optional: str = "optional", hint: bool = True) -> dict[str, Any]:
    """A form's field with label, help and errors, tied together for a screen reader. `hint` False leaves out the help."""
    widget = bound.field.widget
    shape = "line"
    if isinstance(widget, (CheckboxSelectMultiple, RadioSelect)):
        shape = "choices"
    elif isinstance(widget, CheckboxInput):
        shape = "tick"
    elif bound.is_hidden:
        shape = "hidden"
    if not hint:
        bound.help_text = ""
    # Django itself ties a control to the ids <id>_helptext and <id>_error; aria-invalid it sets as well.
    return {
        "field": bound,
        "shape": shape,
        "control": bound.as_widget(),
        "optional": optional if not bound.field.required and shape == "line" else "",
    }


@register.inclusion_tag("components/sort.html", takes_context=True)
def sort(context: template.Context, key: str, label: str, extra: str = "") -> dict[str, Any]:
    """A column's head that sorts the list in `listing`."""
    listing = context["listing"]
    return {
        "label": label,
        "extra": extra,
        "order": listing.order_of(key),
        "href": listing.href(sort=listing.next_sort(key)),
    }


@register.inclusion_tag("components/pager.html", takes_context=True)
def pager(context: template.Context, one: str, many: str) -> dict[str, Any]:
    """The foot of the list in `listing`: which rows of how many, export, and the way on."""
    return {"listing": context["listing"], "one": one, "many": many}


@register.inclusion_tag("components/nav.html", takes_context=True)
def site_nav(context: template.Context) -> dict[str, Any]:
    request = context.get("request")
    return {"places": navigation.places(request) if request is not None else []}


@register.inclusion_tag("components/account.html", takes_context=True)
def account_menu(context: template.Context) -> dict[str, Any]:
    request = context.get("request")
    if request is None or not getattr(request, "user", None) or not request.user.is_authenticated:
        return {"user": None}
    return {
        "user": request.user,
        "posts": navigation.posts(request),
        "request": request,
        "csrf_token": context.get("csrf_token"),
    }


@register.inclusion_tag("components/qr.html")
def qr(text: str, label: str) -> dict[str, Any]:
    """A QR code as one SVG path, so that no image from elsewhere and no ready-made markup is needed."""
    code = qrcode.QRCode(border=0, error_correction=qrcode.constants.ERROR_CORRECT_M)
    code.add_data(text)
    code.make()
    matrix = code.get_matrix()
    path = "".join(f"M{x} {y}h1v1h-1z" for y, row in enumerate(matrix) for x, dark in enumerate(row) if dark)
    return {"path": path, "size": len(matrix), "label": label}


@register.filter
def duo_label(term: str) -> str:
    """A term of the Data Use Ontology by its name: "DUO:0000006" -> "health, medical or biomedical research"."""
    return TERMS[term].label if term in TERMS else term
