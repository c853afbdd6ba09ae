"""Entries of the log in words, for templates."""

import json
from typing import Any

from django import template

from evidence import page_words, selectors
from evidence.models import Entry

register = template.Library()


@register.filter
def type_word(name: str) -> str:
    """What an entry of this type says."""
    return page_words.type_word(name)


@register.filter
def record_of(entry: Entry) -> dict[str, Any]:
    """The entry's record as a dict."""
    return selectors.content(entry)


@register.filter
def plain_name(name: str) -> str:
    """A member's name as a label: "model_digest" -> "Model digest"."""
    return name.replace("_", " ").capitalize()


@register.filter
def plain_value(value: Any) -> str:
    """A member's value as text; lists with commas, anything deeper as JSON."""
    if isinstance(value, list) and all(isinstance(each, (str, int)) for each in value):
        return ", ".join(str(each) for each in value)
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
