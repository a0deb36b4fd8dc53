"""Which of many texts may hold personal data: few do, and only those are searched.

Everything that `pii` looks for needs something rare: six digits or three dots in a run of digits and signs, two
capitals before two digits, an `@`, a plus, two colons near each other, a token's mark, a word such as `password` with
a value. Those are found for many texts at once. A text without any holds nothing that `pii` would find.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import AnyStr

import numpy as np
import numpy.typing as npt

from consortium.data.documents import Document
from consortium.data.pii_numbers import BLANKS, CAPITALS, Phones, Rules, in_run
from consortium.data.tape import Tape, is_long

_BETWEEN_DIGITS = np.array([ord(sign) for sign in f"0123456789 ./()-{BLANKS}\u2011"], np.uint32)
_ASCII_BETWEEN = bytes(code in _BETWEEN_DIGITS for code in range(256))
_AT = ("(at)", "[at]", "(arroba)")
_WIDE = re.compile("[\u3000\uff01-\uff5e]")
_USUAL = {0x3000: 0x20} | {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_LOWER_TO_ASCII = ("\u0130", "\u212a")
"""The only other characters that are ASCII in lower case: `redact` finds `key` in a word with a Kelvin sign."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """How secrets begin: `marks` stand in every token, one of `words` begins all that `assigned` matches."""

    marks: tuple[str, ...]
    words: tuple[str, ...]
    assigned: re.Pattern[str]


def in_usual_width(text: str) -> str:
    """Return a text as it is searched, sign by sign: full-width ones, of which repair leaves some, as ASCII."""
    return text if text.isascii() or _WIDE.search(text) is None else text.translate(_USUAL)


def suspects(documents: Sequence[Document], rules: Rules, phones: Mapping[str, Phones], secrets: Secrets) -> list[int]:
    """Return the numbers of the documents that may hold something that `rules` look for, in order.

    `phones` finds telephone numbers in texts of a language.
    """
    texts = [in_usual_width(document.text) for document in documents]
    if is_long(texts):
        return [0]
    tape = Tape(texts)
    kinds = rules.kinds
    places = _capitals(tape, rules) if kinds & {"iban", "national_id"} else []
    if "phone" in kinds:
        places += _all(tape.text, "+")
    if "email" in kinds or "secret" in kinds:  # a password in a URL
        places += _all(tape.text, "@")
    if "ip" in kinds:
        colons = np.flatnonzero(tape.codes == ord(":"))
        places += colons[:-1][np.diff(colons) <= 5].tolist()
    if "email" in kinds or "secret" in kinds:
        places += _beginnings(tape, secrets)
    found = set(tape.texts_at(np.array(places, np.int64)))
    for at, start, end in _runs(tape):
        if at not in found:
            text = texts[at]
            if any(True for _ in in_run(text, start, text[start:end], rules, phones[documents[at].language])):
                found.add(at)
    return sorted(found)


def _runs(tape: Tape) -> Iterator[tuple[int, int, int]]:
    """Yield where runs of digits and signs are long enough for a number of a person: text, begin and end there."""
    codes = tape.codes
    between = np.frombuffer(bytearray(tape.low_bytes.translate(_ASCII_BETWEEN.ljust(256, b"\0"))), np.bool_)
    between[tape.special] = np.isin(codes[tape.special], _BETWEEN_DIGITS)
    digits = np.flatnonzero(codes - np.uint32(ord("0")) < 10)
    dots = np.flatnonzero(codes == ord("."))
    run = np.cumsum(~between, dtype=np.int32)[digits]
    cuts = np.flatnonzero(run[1:] != run[:-1]) + 1
    first, behind = np.append(0, cuts), np.append(cuts, len(digits))
    number = behind - first
    long = np.flatnonzero(number >= 4)
    number, starts, ends = number[long], digits[first[long]], digits[behind[long] - 1] + 1
    dotted = np.searchsorted(dots, ends) - np.searchsorted(dots, starts) >= 3
    chosen = np.flatnonzero((number >= 6) | dotted)
    at = np.searchsorted(tape.ends, starts[chosen])
    begin = tape.begins[at]
    yield from zip(at.tolist(), (starts[chosen] - begin).tolist(), (ends[chosen] - begin).tolist(), strict=True)


def _capitals(tape: Tape, rules: Rules) -> list[int]:
    """Return where a word begins with two capitals and two digits, or like an identifier that begins with three."""
    text, codes = tape.text, tape.codes
    capital = codes - np.uint32(ord("A")) < 26
    digit = codes - np.uint32(ord("0")) < 10
    two = ~capital[:-4] & capital[1:-3] & capital[2:-2]
    candidates = np.flatnonzero(two & ((digit[3:-1] & digit[4:]) | capital[3:-1])) + 1
    return [
        at
        for at in candidates.tolist()
        if CAPITALS.match(text, at)
        and (text[at + 2].isdigit() or any(pattern.match(text, at) for pattern, _ in rules.letters))
    ]


def _beginnings(tape: Tape, secrets: Secrets) -> Iterator[int]:
    """Yield where a token's mark or `(at)` stands, and where a word has a value assigned to it."""
    signs = (*secrets.marks, *_AT)
    text, lower = tape.text, np.frombuffer(tape.low_bytes.lower(), np.uint8)
    pairs = _pairs(tuple(sign for sign in (*signs, *secrets.words) if len(sign) > 2))[
        lower[:-1] | lower[1:].astype(np.uint16) << 8
    ]
    for at in np.flatnonzero(pairs[:-2] & (pairs[2:] >> 8)).tolist():
        if text.startswith(signs, at) or secrets.assigned.match(text, at):
            yield at
    for sign in (*(sign for sign in signs if len(sign) < 3), *_LOWER_TO_ASCII):
        yield from _all(text, sign)


@lru_cache(maxsize=4)
def _pairs(signs: tuple[str, ...]) -> npt.NDArray[np.uint16]:
    """Return, by two bytes in lower case, the signs that begin with them (low bits) or go on with them (high bits).

    Signs share eight bits: bytes 1 and 2 of one and 3 and 4 of another may be taken for a sign, none is overlooked.
    """
    pairs = np.zeros((256, 256), np.uint16)  # by second and first byte
    for number, sign in enumerate(signs):
        code = sign.lower().encode("ascii")
        pairs[code[1], code[0]] |= np.uint16(1 << number % 8)
        pairs[code[3] if len(code) > 3 else slice(None), code[2]] |= np.uint16(256 << number % 8)
    return pairs.ravel()


def _all(text: AnyStr, part: AnyStr) -> Iterator[int]:
    """Yield where a part stands in a text."""
    at = text.find(part)
    while at >= 0:
        yield at
        at = text.find(part, at + 1)
