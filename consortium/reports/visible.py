"""Text from files and other machines, made harmless for those who look at it."""

from __future__ import annotations

import json
import unicodedata

_MAX_MARKS = 2
"""Combining marks in a row that are shown."""
_UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def visible(text: str) -> str:
    """Return a text whose every character is seen or harmless.

    Controls, characters that turn the direction of what follows, and others without a shape become their number; of
    marks piled on one letter a few stay.
    """
    if text.isascii() and text.isprintable():
        return text
    shown: list[str] = []
    marks = 0
    for sign in text:
        kind = unicodedata.category(sign)
        marks = marks + 1 if kind in ("Mn", "Me") else 0
        if kind in _UNSEEN and sign not in "\n\t":
            shown.append(f"⟨{ord(sign):X}⟩")
        elif marks <= _MAX_MARKS:
            shown.append(sign)
    return "".join(shown)


def visible_json(text: str) -> str:
    """Return JSON text of the same value, with such characters written as JSON's escapes."""
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(
        json.dumps(sign)[1:-1] if sign not in "\n\t" and unicodedata.category(sign) in _UNSEEN else sign
        for sign in text
    )
