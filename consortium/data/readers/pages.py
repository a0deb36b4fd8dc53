"""The main text of an HTML page, by trafilatura: without menus, footers, scripts and comments.

Nothing a page names is fetched, and no script runs: the page's bytes are all that is looked at. A page says in which
characters it is written (byte order mark, HTTP header, `<meta>`; else UTF-8
where it can be, else windows-1252); only encodings that browsers know are
taken. A byte that the encoding does not have becomes U+FFFD, as browsers do it, up to one in a hundred characters.
"""

from __future__ import annotations

import codecs
import logging
import re
from collections.abc import Mapping
from typing import Any

from consortium.data.readers.items import Item, Quarantined, document, first_line

MAX_PAGE_BYTES = 8 << 20
"""A larger page is quarantined; its tree and text take up to about ninety times as much memory."""
_MAX_DEPTH = 500
"""Elements within each other. Deeper pages are not written by people, and what walks trees is recursive."""
_MAX_ELEMENTS = 200_000

_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s{0,9}=\s{0,9}["']?\s{0,9}([A-Za-z0-9_:.-]{2,40})""", re.IGNORECASE)
_LANGUAGE = re.compile(r"""<html\b[^>]{0,500}?\blang\s{0,9}=\s{0,9}["']?([A-Za-z]{2,3})(?![A-Za-z])""", re.IGNORECASE)
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


def _labels() -> dict[str, str]:
    """Return the labels of the WHATWG's Encoding Standard (section 4.2), and Python's codec for each.

    Where the standard takes an encoding for a larger one, so does this: EUC-KR is Windows' code page 949.
    Others (`idna`, `unicode_escape`) are refused.
    """
    found = {label: codec for codec, labels in _CODECS.items() for label in labels.split()}
    for part in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16):
        found |= dict.fromkeys(_iso(part), f"iso-8859-{part}")
    found |= dict.fromkeys(_iso(1), "cp1252") | dict.fromkeys(_iso(9), "cp1254") | dict.fromkeys(_iso(11), "cp874")
    for number in range(1250, 1259):
        found |= dict.fromkeys((f"cp{number}", f"windows-{number}", f"x-cp{number}"), f"cp{number}")
    return found


def _iso(part: int) -> tuple[str, ...]:
    return f"iso-8859-{part}", f"iso8859-{part}", f"iso8859{part}", f"iso_8859-{part}"


_CODECS = {
    "utf-8": "utf-8 utf8 unicode-1-1-utf-8 unicode11utf8",
    "utf-16-le": "utf-16 utf-16le utf-16-le unicode ucs-2 iso-10646-ucs-2",
    "utf-16-be": "utf-16be utf-16-be",
    "cp1252": "ascii us-ascii latin1 latin-1 l1 cp819 iso_8859-1:1987 iso-ir-100",
    "iso-8859-2": "latin2 l2 iso_8859-2:1987 iso-ir-101",
    "iso-8859-3": "latin3 l3 iso_8859-3:1988 iso-ir-109",
    "iso-8859-4": "latin4 l4 iso_8859-4:1988 iso-ir-110",
    "iso-8859-5": "cyrillic iso_8859-5:1988 iso-ir-144",
    "iso-8859-6": "arabic asmo-708 ecma-114 iso-8859-6-e iso-8859-6-i iso_8859-6:1987 iso-ir-127",
    "iso-8859-7": "greek greek8 ecma-118 elot_928 iso_8859-7:1987 iso-ir-126",
    "iso-8859-8": "hebrew visual logical iso-8859-8-e iso-8859-8-i iso_8859-8:1988 iso-ir-138",
    "iso-8859-10": "latin6 l6 iso-ir-157",
    "iso-8859-15": "l9",
    "cp1254": "latin5 l5 iso_8859-9:1989 iso-ir-148",
    "cp866": "ibm866 cp866 866",
    "cp874": "windows-874 dos-874 tis-620",
    "koi8-r": "koi8-r koi8_r koi8 koi",
    "koi8-u": "koi8-u koi8-ru",
    "mac-roman": "macintosh mac x-mac-roman",
    "mac-cyrillic": "x-mac-cyrillic x-mac-ukrainian",
    "gb18030": "gb18030 gbk x-gbk gb2312 gb_2312 gb_2312-80 chinese iso-ir-58",
    "hz": "hz",
    "big5hkscs": "big5 big5-hkscs cn-big5 x-x-big5",
    "euc_jis_2004": "euc-jp x-euc-jp",
    "iso-2022-jp": "iso-2022-jp",
    "cp932": "shift_jis shift-jis sjis x-sjis ms_kanji ms932 windows-31j",
    "cp949": "euc-kr korean windows-949 ksc5601 ksc_5601 ks_c_5601-1987 ks_c_5601-1989 iso-ir-149",
}
_ENCODINGS = _labels()


def page(data: bytes, name: str, row: int, values: Mapping[str, Any], charset: str = "") -> Item:
    """Return the document in a page: `values` and, where these lack them, the language and date that the page gives."""
    try:
        html = decoded(data, charset)
        found = _extracted(html)
    except ValueError as fault:
        reason, _, detail = first_line(fault).partition(": ")
        return Quarantined(file=name, row=row, reason=reason, detail=detail)
    except (RecursionError, MemoryError) as fault:
        return Quarantined(file=name, row=row, reason="html", detail=first_line(fault))
    if not found.get("text"):
        return Quarantined(file=name, row=row, reason="no_text", detail="the page has no main text")
    return document({**found, **values}, name, row)


def decoded(data: bytes, charset: str = "") -> str:
    """Return a page's bytes as text. Raises ValueError (`reason: detail`) where they are in no known encoding."""
    if len(data) > MAX_PAGE_BYTES:
        raise ValueError(f"too_large: the page has more than {MAX_PAGE_BYTES} bytes")
    mark = next(((mark, name) for mark, name in _BOMS if data.startswith(mark)), None)
    told = _CHARSET.search(data[:4096])
    label = mark[1] if mark else charset or (told[1].decode("ascii") if told else _undeclared(data))
    codec = _ENCODINGS.get(label.strip().lower())
    if codec is None:
        raise ValueError(f"charset: {label[:40]!r} is no encoding of text on the web")
    if told and not charset and not mark and codec.startswith("utf-16"):
        codec = "utf-8"  # a page that can say so in ASCII is not in UTF-16
    text = (data[len(mark[0]) :] if mark else data).decode(codec, "replace")
    if text.count("�") * 100 > len(text):
        raise ValueError(f"utf8: more than one in a hundred characters is none in {codec}")
    return text


def _undeclared(data: bytes) -> str:
    """Return the encoding of a page that names none: UTF-8 where it can be, else what browsers take."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return "windows-1252"
    return "utf-8"


def _extracted(html: str) -> dict[str, Any]:
    """Return text, language and date of a page. Raises ValueError where its markup is beyond what people write."""
    import lxml.html
    from trafilatura import bare_extraction

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # it logs pieces of pages
    logging.getLogger("htmldate").setLevel(logging.CRITICAL)
    if html.count("<") > _MAX_ELEMENTS * 2:
        raise ValueError(f"html: more than {_MAX_ELEMENTS} elements")
    try:
        tree = lxml.html.document_fromstring(html.encode("utf-8"), parser=lxml.html.HTMLParser(encoding="utf-8"))
    except (ValueError, lxml.etree.LxmlError) as fault:  # an empty page, too
        raise ValueError(f"html: {first_line(fault)}") from fault
    if _depth(tree) > _MAX_DEPTH:
        raise ValueError(f"html: elements stand more than {_MAX_DEPTH} deep")
    found = bare_extraction(
        tree,
        include_comments=False,
        with_metadata=True,
        date_extraction_params={  # fixed bounds: the same page gives the same date on any day
            "original_date": True,
            "extensive_search": False,
            "max_date": "2100-01-01",
            "outputformat": "%Y-%m-%d",
        },
    )
    if found is None:
        return {}
    language = _LANGUAGE.search(html[:4096])
    return {
        "text": getattr(found, "text", None),
        "published": getattr(found, "date", None) or "",
        "language": language[1].lower() if language else "",
    }


def _depth(tree: Any) -> int:
    deepest = depth = 0
    import lxml.etree

    for event, _ in lxml.etree.iterwalk(tree, events=("start", "end")):
        depth += 1 if event == "start" else -1
        deepest = max(deepest, depth)
    return deepest
