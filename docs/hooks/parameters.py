"""Docstrings for the API page: "name: what it is." becomes an item of a list."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import griffe


class Parameters(griffe.Extension):
    """Lists the parameters of functions and the fields of classes."""

    def on_function_instance(self, *, func: griffe.Function, **rest: Any) -> None:
        """After a function was read."""
        _list(func, (parameter.name for parameter in func.parameters))

    def on_class_members(self, *, cls: griffe.Class, **rest: Any) -> None:
        """After a class was read."""
        _list(cls, (name for name, member in cls.members.items() if member.is_attribute))


def _list(thing: griffe.Object, names: Iterable[str]) -> None:
    if thing.docstring is not None:
        thing.docstring.value = listed(thing.docstring.value, names)


def listed(text: str, names: Iterable[str]) -> str:
    """The docstring with a list where its paragraphs say `name: ...` or `name, name: ...` at the start of a sentence.

    "Returns" and "Raises" start a paragraph of their own.
    """
    name = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    if not name:
        return text
    one = rf"(?:{name})(?:\([\w, *]*\))?"
    parts = []
    for paragraph in text.split("\n\n"):
        flat = " ".join(paragraph.split())
        if not re.search(rf"(?:^|\. )({one}(?:, {one})*): ", flat):
            parts.append(paragraph)
            continue
        flat = re.sub(r"(?<=[.)]) (?=(?:Returns|Raises|Differentiable)\b)", "\n\n", flat)
        parts.append(re.sub(rf"(?:^|(?<=\.) )({one}(?:, {one})*): ", r"\n\n- **\1**: ", flat).strip())
    return "\n\n".join(parts)
