"""Unicode repair: ftfy where a text may need it, NFC, no control characters; most texts need none and are left alone.

| what                                                     | becomes                                                  |
|----------------------------------------------------------|----------------------------------------------------------|
| UTF-8 read as Latin-1, Windows-125x, Mac Roman or CP437   | the characters meant (ftfy)                              |
| HTML entities in a text without tags                     | their characters (ftfy)                                  |
| C1 controls, ligatures, lone surrogates                  | what they stand for (ftfy)                               |
| full-width letters and digits, half-width kana           | those of usual width, and what joins them: `@.-_+`       |
| `\\r`, U+0085, U+2028, U+2029                             | newlines                                                 |
| other controls, terminal escapes, byte order marks,      | nothing                                                  |
| soft hyphens, zero-width spaces that part no words       |                                                          |
| any normal form                                          | NFC                                                      |

Quotation marks stay as they are: in French and German they are right. So do the full-width punctuation and the space of
Chinese and Japanese, and the zero-width spaces beside letters of Thai, Lao, Khmer and Myanmar, which part words there.
Redaction reads what stays as if it were of usual width.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import ftfy
import numpy as np
import numpy.typing as npt
from ftfy.badness import is_bad
from ftfy.chardata import WIDTH_MAP

from consortium.data.documents import Document, Notes
from consortium.data.tape import Tape, batches, is_long

CONFIG = ftfy.TextFixerConfig(uncurl_quotes=False, fix_character_width=False, normalization="NFC", explain=False)
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\ua9e0-\ua9ff\uaa60-\uaadf"
"""Letters of South-East Asia, whose words a zero-width space parts."""
_PARTS_NONE = f"(?:(?<!\u200b)|(?<![{_UNSPACED}]\u200b)(?![{_UNSPACED}]))"
"""Behind a sign: it is no zero-width space, or parts no such words. A pattern that begins with its signs is searched
for ten times as fast as one with alternatives."""
_NOTHING = re.compile(f"[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f\\u00ad\\u200b\\u2060\\ufeff]{_PARTS_NONE}")
_WIDE = "\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\uff61-\uffdc"
_USUAL_WIDTH = {code: form for code, form in WIDTH_MAP.items() if re.match(f"[{_WIDE}]", chr(code))}
_WIDE_JOINS = "\uff0b\uff0d\uff0e\uff20\uff3f"
_JOINS = re.compile(
    "(?<=[0-9A-Za-z])[\uff0d\uff20\uff3f](?=[0-9A-Za-z])|\uff0b(?=[0-9])"
    "|(?<=[0-9])\uff0e(?=[0-9])|(?<=[A-Za-z])\uff0e(?=[A-Za-z])"
)
_ASCII_SUSPECT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]|&[#A-Za-z]")
_ROUNDS = 5
_ENCODINGS = ("latin-1", "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1257", "iso8859_2", "mac_roman", "cp437")
"""Those that ftfy tries."""
_ALL_LEADS = ((0xC2, 0xDF, 1), (0xE0, 0xEF, 2), (0xF0, 0xF4, 3))
"""Lead bytes of UTF-8, from and to, and how many bytes follow."""
_COMMON_LEADS = ((0xC2, 0xC5, 1), (0xE2, 0xE2, 2))
"""Of Latin letters and punctuation. The other leads are letters and quotation marks in Mac Roman and CP437: after one
of these ftfy's own measure decides, which costs more than all the rest."""


def _read(encoding: str, low: int, high: int) -> str:
    """Return signs above ASCII that bytes from `low` to `high` are in an encoding; Latin-1's where it has none."""
    whole = "".join(bytes([byte]).decode(encoding, "ignore") or chr(byte) for byte in range(low, high + 1))
    return "".join(sorted(sign for sign in set(whole) if ord(sign) > 127))


def _mojibake() -> tuple[str, str, str, str, str, str]:
    """Return what UTF-8 looks like when it is read in another encoding.

    First and second sign of it, of any encoding; first signs that are rare in any text; the pattern for all; and first
    and second sign of what may as well be right.
    """
    leads = follows = rare = ""
    patterns: list[str] = []
    first = second = ""
    for encoding in _ENCODINGS:
        uncommon = encoding in ("mac_roman", "cp437")
        follow = _read(encoding, 0x80, 0xBF) + "".join(map(chr, range(0x80, 0xA0)))
        for low, high, number in _COMMON_LEADS if uncommon else _ALL_LEADS:
            lead = _read(encoding, low, high)
            patterns.append(f"[{re.escape(lead)}][{re.escape(follow)}]{{{number}}}")
            leads, rare = (leads, rare + lead) if uncommon else (leads + lead, rare)
        if uncommon:
            first += "".join(_read(encoding, low, high) for low, high, _ in _ALL_LEADS)
            second += follow
        follows += "" if uncommon else follow
    return leads, follows, rare, "|".join(patterns), first, second


_LEADS, _FOLLOWS, _RARE, _PATTERN, _FIRSTS, _SECONDS = _mojibake()
_SIGNS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u0132\u0133\u0149\u01c4-\u01cc\u01f1-\u01f3\u200b\u2028\u2029\u2060"
    f"\u206a-\u206f\ud800-\udfff\ufb00-\ufb06\ufeff{_WIDE}{_WIDE_JOINS}\ufff9-\ufffd&{re.escape(_RARE)}]{_PARTS_NONE}"
)
_PAIR = re.compile(f"[{re.escape(_LEADS)}][{re.escape(_FOLLOWS)}]")
_MOJIBAKE = re.compile(_PATTERN)
_DOUBTFUL = re.compile(f"[{re.escape(_FIRSTS)}][{re.escape(_SECONDS)}]")
_LOST_BLANKS = ("\u00c2 ", "\u00c3 ")
"""Of mojibake whose second sign was a no-break space and became a space."""
_KNOWN = 0x3000
"""Of characters from here on it is not known that they are in NFC whatever stands before them."""
_ALONE, _LEAD, _FOLLOW, _FIRST, _SECOND, _BLANK_LEAD = (np.uint8(1 << bit) for bit in range(6))


def needs_repair(text: str) -> bool:
    """Tell whether `repaired` may change a text; False is certain, True is not. Looks from cheap to dear."""
    if text.isascii():
        return _ASCII_SUSPECT.search(text) is not None
    return (
        _SIGNS.search(text) is not None
        or any(pair in text for pair in _LOST_BLANKS)
        or (_PAIR.search(text) is not None and _MOJIBAKE.search(text) is not None)
        or not unicodedata.is_normalized("NFC", text)
        or (_DOUBTFUL.search(text) is not None and is_bad(text))
    )


def suspects(texts: Sequence[str]) -> list[int]:
    """Return which of many texts `needs_repair` may be true of; it is false of all others."""
    if is_long(texts):
        return [0]
    tape = Tape(texts)
    special = np.flatnonzero((tape.codes - np.uint32(0x20) > 0x5E) | (tape.codes == ord("&")))
    kinds = _kinds()[np.minimum(tape.codes[special], _KNOWN)]
    first, second = kinds[:-1], kinds[1:]
    pairs = ((first & _LEAD) != 0) & ((second & _FOLLOW) != 0) | ((first & _FIRST) != 0) & ((second & _SECOND) != 0)
    found = (kinds & _ALONE) != 0
    found[:-1] |= pairs & (np.diff(special) == 1)
    leads = np.flatnonzero((kinds & _BLANK_LEAD) != 0)
    found[leads] |= tape.codes[special[leads] + 1] == ord(" ")
    return tape.texts_at(special[found])


@lru_cache(maxsize=1)
def _kinds() -> npt.NDArray[np.uint8]:
    """Return, of each character up to `_KNOWN`, what it may be a part of.

    Alone it calls for a look where it is one of `_SIGNS`, or may be in no normal form: is not itself in NFC, is a mark
    or is a Hangul vowel or final, which join what stands before them.
    """
    kinds = np.zeros(_KNOWN + 1, np.uint8)
    for code, sign in enumerate(map(chr, range(_KNOWN))):
        joins = code >= 0x300 and (unicodedata.category(sign).startswith("M") or 0x1160 <= code < 0x1200)
        if joins or _SIGNS.match(sign) or not unicodedata.is_normalized("NFC", sign):
            kinds[code] |= _ALONE
    kinds[_KNOWN] = _ALONE
    parts = (_LEAD, _LEADS), (_FOLLOW, _FOLLOWS), (_FIRST, _FIRSTS), (_SECOND, _SECONDS)
    for kind, signs in (*parts, (_BLANK_LEAD, "".join(pair[0] for pair in _LOST_BLANKS))):
        kinds[[ord(sign) for sign in signs if ord(sign) < _KNOWN]] |= kind
    return kinds


def repaired(text: str) -> str:
    """Return a text that needs no repair. What repair itself uncovers (`&amp;lt;`) is repaired too."""
    for _ in range(_ROUNDS):
        once = _NOTHING.sub("", ftfy.fix_text(text, CONFIG)).translate(_USUAL_WIDTH)
        once = unicodedata.normalize("NFC", _JOINS.sub(lambda sign: WIDTH_MAP[ord(sign[0])], once))
        if once == text:
            break
        text = once
    return text


def repair(documents: Iterable[Document], notes: Notes) -> Iterator[Document]:
    """Repair documents; a repaired one is noted once, with the span that holds all differences."""
    for batch in batches(documents):
        for at in suspects([document.text for document in batch]):
            document = batch[at]
            if needs_repair(document.text):
                text = repaired(document.text)
                if text != document.text:
                    notes.edit(document, "repair.unicode", "", *_span(document.text, text))
                    batch[at] = document.edited(text)
        yield from batch


def _span(before: str, after: str) -> tuple[int, int]:
    """Return the characters of `before` between what both begin with and what both end with."""
    start = _alike(before, after)
    return start, len(before) - _alike(before[start:][::-1], after[start:][::-1])


def _alike(one: str, other: str) -> int:
    """Return how many characters two texts begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
