"""The JSON of a page, and its schema (JSON Schema, draft 2020-12), made from the dataclasses of `page`.

`docs/report.schema.json` is what `schema()` gives.
"""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from reparam_compiler.reporting.page import VERSION, Page

_SIMPLE = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    NoneType: {"type": "null"},
}


def as_record(item: Any) -> dict[str, Any]:
    """A dataclass as an object with its fields, for `json.dumps(…, default=as_record)`, which asks for those within."""
    return {field.name: getattr(item, field.name) for field in fields(item)}


def to_json(page: Page) -> str:
    """The page as an object with the fields of its class."""
    return json.dumps(page, default=as_record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def schema() -> dict[str, Any]:
    """The schema of what `to_json` gives."""
    found: dict[str, Any] = {}
    _define(Page, found)
    found["Page"]["properties"]["version"] = {"const": VERSION}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A report of reparam_compiler",
        "$ref": "#/$defs/Page",
        "$defs": dict(sorted(found.items())),
    }


def _define(kind: Any, found: dict[str, Any]) -> None:
    """Puts the schema of a dataclass, and of those in its fields, among those that were found."""
    if kind.__name__ in found:
        return
    hints = get_type_hints(kind)
    names = [item.name for item in fields(kind)]
    found[kind.__name__] = {"type": "object", "required": names, "additionalProperties": False}
    found[kind.__name__]["properties"] = {name: _of(hints[name], found) for name in names}


def _of(hint: Any, found: dict[str, Any]) -> dict[str, Any]:
    """The schema of a type."""
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    if is_dataclass(hint):
        _define(hint, found)
        return {"$ref": f"#/$defs/{hint.__name__}"}  # type: ignore[union-attr]
    parts = get_args(hint)
    if isinstance(hint, UnionType):
        return {"anyOf": [_of(part, found) for part in parts]}
    if get_origin(hint) is Mapping:
        return {"type": "object", "additionalProperties": _of(parts[1], found)}
    if parts[-1] is Ellipsis:
        return {"type": "array", "items": _of(parts[0], found)}
    return {"type": "array", "prefixItems": [_of(part, found) for part in parts], "items": False, "minItems": len(parts)}
