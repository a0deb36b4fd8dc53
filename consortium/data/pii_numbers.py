"""Numbers of persons in a text: payment cards, national identifiers, IPv4 addresses, IBAN; telephones in `pii_phones`.

One scan finds runs of digits and the signs that people put between them; everything else looks at runs only, of which a
law text has few. A run is split into groups of digits, and windows of groups are looked up by their layout (`3.3.3-2`):
what is left is checked by python-stdnum, and by what stands before and behind it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from stdnum import iban, luhn

from consortium.data import pii_identifiers
from consortium.data.pii_identifiers import IDENTIFIERS, SPACES, Check

CUE_CHARS = 40
"""How far before a number a word may stand that says what it is."""
MAX_GROUPS = 8
BLANKS = "\u00a0\u2007\u2009\u202f"

_RUN = re.compile(rf"[0-9][0-9 ./()\-{BLANKS}\u2011]{{4,}}[0-9]")
PLAIN = str.maketrans(dict.fromkeys(BLANKS, " ") | {"\u2011": "-"})
_DIGITS_ONLY = str.maketrans("", "", " ./()-")
_GROUP = re.compile(r"[0-9]+")
DATE = re.compile(r"[0-9]{1,2}([./-])[0-9]{1,2}\1[0-9]{4}|[0-9]{4}-[0-9]{2}-[0-9]{2}")
CAPITALS = re.compile(
    rf"[A-Z]{{2}}(?:[0-9]{{2}}[ \-{BLANKS}]?[A-Z0-9]{{4}}|[A-Z] ?[A-Z]{{3}} ?[0-9LMNPQRSTUV]{{2}}[A-Z])"
)
_IBAN = re.compile(rf"[A-Z]{{2}}[0-9]{{2}}(?:[ .\-{BLANKS}]?[A-Z0-9]{{1,4}}){{3,8}}")
EXTENSION = re.compile(r" ?(?:x|ext\.?|extn\.?|poste|int\.?|DW) ?[0-9]{1,6}(?![\w])")
_TIGHT = re.compile(r"[./-]")
_TIES = tuple(".,:/-")
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = re.compile(rf"(?<![0-9.]){_OCTET}(?:\.{_OCTET}){{3}}(?![0-9]|\.[0-9])")

_WORD = re.compile(r"[^\W\d_]+(?:[.-][^\W\d_]+)*")
_NUMBER_OF = r"(?![^\W\d_])[\s:.°º#-]{0,4}(?:(?:no?|nr|nummer|num[ée]ro|n[úu]mero|number)(?![^\W\d_])[\s:.°º#-]{0,4})?$"
_THINGS = (
    r"isbn(?:-1[03])?|issn|ean|gtin|doi|ecli|celex|siren|siret|rcs|hr[ab]|cas-(?:nr|nummer|no|number)|einecs|imo|serial"
    r"|seriennummer|lote?|expediente|facture|rechnung(?:snummer|s-?nr)?|invoice|order|commande|bestell(?:nummer|-?nr)"
    r"|factura|pedido|aktenzeichen|charge|artikel-?nr"
)
_CITATIONS = (
    r"az|gesch(?:äfts)?z(?:eichen)?|exp|dossier|art(?:icle|[ií]culo|ikel)?|version|versión|v|jorf|bgbl|boe-?a?|ley|loi|law"
    r"|d[ée]cret|decreto|r[ée]f(?:er[eê]nc(?:e|ia)|erenz|érence)?|zeichen|matr[ií]cula|padr[oó]n|eg-?nr|code|código|id|cas"
)
CATALOGUED = re.compile(rf"\b(?:{_THINGS}){_NUMBER_OF}", re.IGNORECASE)
"""A word before a number that says that it belongs to a thing."""
CITED = re.compile(rf"(?:\b(?:{_THINGS}|{_CITATIONS})|§){_NUMBER_OF}", re.IGNORECASE)
"""The same, or a citation: those have too few digits to be taken for a card, but may look like a telephone number."""
NUMBERED = re.compile(r"(?:\bn[°ºo]|\bnr|№|#)[. :]*$", re.IGNORECASE)
MONEY_BEFORE = re.compile(r"(?:[€$£]|\b(?:EUR|USD|UYU|CHF|GBP|BRL|DM|R))[ \u00a0]?$")
UNIT_BEHIND = re.compile(
    rf"[ {BLANKS}]?(?:[€$£%‰°]|(?:EUR|USD|UYU|CHF|GBP|DM|euros?|Euro|pesos?|francs?|dollars?|reais|UI|UR|Mio|Mrd"
    r"|millions?|millones|Millionen|milliards?|kg|kWh|MWh|km|ha|t|m[²³23]|tonnes?|toneladas?|Tonnen|hectáreas"
    r"|habitants?|habitantes|Einwohner|inhabitants|Stück|litres?|Liter|litros)\b)"
)
_IP_CUE = re.compile(
    r"\b(?:ip(?:v4)?|adresse|address|direcci[oó]n|endereço|serveur|server|servidor|host|ping|dns|gateway|router|proxy"
    r"|ssh|client|login|connexion|conexi[oó]n|red|network|netz)(?![^\W\d_])",
    re.IGNORECASE,
)
_FROM = re.compile(r"\b(?:from|von|depuis|desde)\s+$", re.IGNORECASE)
_VERSION = re.compile(
    r"(?:\bv(?:ers(?:ion|ión|ão)?)?|release|firmware|build|oid|identifier)[. :=('\"]*$",
    re.IGNORECASE,
)
_SECTION = re.compile(
    r"(?:§+|nr|nummer|ziffer|abschnitt|kapitel|num[ée]ro|section|secci[oó]n|punto|point|anhang|annexe|anexo"
    r"|r[úu]bri(?:que|ca)|n[°º])[. :]*$",
    re.IGNORECASE,
)

_CARD_LAYOUTS = frozenset(
    f"{lengths[0]}" + "".join(f"{sep}{length}" for length in lengths[1:])
    for sep in " -."
    for lengths in ("4444", "465", "464", "44443", "4441", "454")
) | {str(length) for length in (*range(12, 17), 19)}
_CARD = re.compile(
    r"4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})"  # Visa
    r"|(?:5[1-5][0-9]{2}|222[1-9]|22[3-9][0-9]|2[3-6][0-9]{2}|27[01][0-9]|2720)[0-9]{12}"  # Mastercard
    r"|3[47][0-9]{13}"  # American Express
    r"|(?:6011|65[0-9]{2}|64[4-9][0-9])(?:[0-9]{12}|[0-9]{15})"  # Discover
    r"|3(?:0[0-59]|6[0-9]|[89][0-9])(?:[0-9]{11}|[0-9]{13})"  # Diners Club
    r"|35[0-9]{14}|(?:2131|1800)[0-9]{11}"  # JCB
    r"|(?:50|5[6-9]|6[0-9])[0-9]{14}(?:[0-9]{2,3})?"  # Maestro, Elo, Hipercard, UnionPay
    r"|(?:5018|5020|5038|5[6-8][0-9]{2}|6304|6390|67(?:59|6[1-3])|0604)[0-9]{8}(?:[0-9]{1,3})?"  # Maestro, shorter ones
    r"|220[0-4][0-9]{12}"  # Mir
)


class Span(NamedTuple):
    """What was found where: [start, end) in the text that was searched."""

    kind: str
    start: int
    end: int


class Cue:
    """Words that say what the number behind them is."""

    __slots__ = ("beginnings", "whole")

    def __init__(self, words: str) -> None:
        self.whole = frozenset(word for word in words.split("|") if len(word) <= 3)
        self.beginnings = tuple(word for word in words.split("|") if len(word) > 3)

    def stands_in(self, words: list[str]) -> bool:
        """Tell whether one of `words` is one of the cue's."""
        return any(word in self.whole or word.startswith(self.beginnings) for word in words)


@dataclass(frozen=True, slots=True)
class Rules:
    """What to look for, compiled for a set of kinds and states."""

    kinds: frozenset[str]
    regions: tuple[str, ...]
    alone: dict[str, tuple[Check, ...]]
    cued: dict[str, tuple[tuple[Check, Cue], ...]]
    letters: tuple[tuple[re.Pattern[str], Check], ...]
    layouts: frozenset[str]


def rules(kinds: frozenset[str], states: tuple[str, ...]) -> Rules:
    """Compile the table for `states`."""
    alone: dict[str, list[Check]] = {}
    cued: dict[str, list[tuple[Check, Cue]]] = {}
    letters = []
    for row in IDENTIFIERS if "national_id" in kinds else ():
        if row.state not in states:
            continue
        check = pii_identifiers.check(row.check)
        for layout in row.alone:
            alone.setdefault(layout, []).append(check)
        cue = Cue(row.cue)
        for layout in row.cued:
            cued.setdefault(layout, []).append((check, cue))
        if row.letters:
            pattern = row.letters.replace(" ?", f"[ {BLANKS}]?")
            letters.append((re.compile(rf"(?<![A-Za-z0-9_]){pattern}(?![A-Za-z0-9_])"), check))
    return Rules(
        kinds=kinds,
        regions=tuple(state.upper() for state in states),
        alone={layout: tuple(checks) for layout, checks in alone.items()},
        cued={layout: tuple(checks) for layout, checks in cued.items()},
        letters=tuple(letters),
        layouts=frozenset(alone) | frozenset(cued) | (_CARD_LAYOUTS if "credit_card" in kinds else frozenset()),
    )


class Run:
    """A run of digits and separators at `start` of `text`, split into groups."""

    __slots__ = ("before", "digits", "end", "groups", "separators", "start", "string", "text", "words")

    def __init__(self, text: str, start: int, string: str, digits: int) -> None:
        self.text, self.start, self.string, self.end, self.digits = text, start, string, start + len(string), digits
        self.groups = [match.span() for match in _GROUP.finditer(string)]
        self.separators = [string[a[1] : b[0]] for a, b in zip(self.groups, self.groups[1:], strict=False)]
        self.before = text[max(0, start - CUE_CHARS) : start]
        self.words = _WORD.findall(self.before.lower())

    def preceding(self, first: int) -> str:
        """Return up to CUE_CHARS characters before group `first`."""
        if not first:
            return self.before
        at = self.start + self.groups[first][0]
        return self.text[max(0, at - CUE_CHARS) : at]

    def number(self, first: int, last: int) -> str:
        """Return the digits of groups `first` to `last`."""
        return "".join(self.string[begin:end] for begin, end in self.groups[first : last + 1])

    def inner(self, first: int, last: int) -> tuple[int, int]:
        """Return where groups `first` to `last` stand in the run."""
        return self.groups[first][0], self.groups[last][1]

    def span(self, kind: str, first: int, last: int) -> Span:
        """Return groups `first` to `last` as a span of the text."""
        return Span(kind, self.start + self.groups[first][0], self.start + self.groups[last][1])

    def is_opened(self, first: int) -> bool:
        """Tell whether group `first` stands in parentheses."""
        at = self.start + self.groups[first][0]
        closes = first < len(self.separators) and self.separators[first].startswith(")")
        return closes and self.text[at - 1 : at] == "("

    def size(self, group: int) -> int:
        """Return the number of digits of a group."""
        return self.groups[group][1] - self.groups[group][0]

    def begins_apart(self, first: int) -> bool:
        """Tell whether no digit or letter is tied to group `first` from the left."""
        if first:
            return not _TIGHT.fullmatch(self.separators[first - 1])
        before = self.text[max(0, self.start - 2) : self.start]
        if before[-1:].isalnum() or before[-1:] in ("_", "+"):
            return False
        return not (before[-1:] in _TIES and before[:1].isalnum() and len(before) == 2)

    def ends_apart(self, last: int) -> bool:
        """Tell whether no digit, letter or unit is tied to group `last` from the right."""
        if last < len(self.separators):
            return not _TIGHT.fullmatch(self.separators[last])
        behind = self.text[self.end : self.end + 2]
        if (behind[:1].isalnum() or behind[:1] == "_") and not EXTENSION.match(self.text, self.end):
            return False
        if behind[:1] in _TIES and behind[1:].isalnum() and (behind[0] != "." or behind[1:].isdigit()):
            return False
        return not UNIT_BEHIND.match(self.text, self.end)

    def is_apart(self, first: int, last: int) -> bool:
        """Tell whether the window is not a part of a longer number or of a row of a table."""
        if not (self.begins_apart(first) and self.ends_apart(last)) or MONEY_BEFORE.search(self.preceding(first)):
            return False
        if first == last or " " not in self.separators[first:last]:
            return True
        left = first and self.separators[first - 1] == " " and self.size(first - 1) == self.size(first)
        right = last < len(self.separators) and self.separators[last] == " " and self.size(last + 1) == self.size(last)
        return not (left or right)


Phones = Callable[[Run], Iterable[Span]] | None


def find(text: str, rules: Rules, phones: Phones) -> list[Span]:
    """Return what looks like a number of a person, in no particular order; spans may overlap.

    `phones` finds telephone numbers in a run, if they are wanted.
    """
    found: list[Span] = []
    for match in _RUN.finditer(text):
        found += in_run(text, match.start(), match.group(), rules, phones)
    if rules.kinds & {"iban", "national_id"}:
        found += _with_capitals(text, rules)
    return found


def in_run(text: str, start: int, string: str, rules: Rules, phones: Phones) -> Iterator[Span]:
    """Find numbers in a run of digits and signs that begins at `start`."""
    if not string.isascii():
        string = string.translate(PLAIN)
    digits = len(string.translate(_DIGITS_ONLY))
    end = start + len(string)
    if "ip" in rules.kinds and string.count(".") >= 3:
        yield from _ipv4(text, start, end)
    if digits >= 6 and rules.letters and _capital_beside(text, start, end):
        for pattern, check in rules.letters:
            for match in pattern.finditer(text, max(0, start - 8), min(len(text), end + 16)):
                if check(SPACES.sub("", match.group())):
                    yield Span("national_id", *match.span())
    if digits < 7 or DATE.fullmatch(string):
        return
    run = Run(text, start, string, digits)
    yield from _windows(run, rules)
    if phones:
        yield from phones(run)


def _capital_beside(text: str, start: int, end: int) -> bool:
    before, behind = text[max(0, start - 2) : start], text[end : end + 2]
    return before[-1:].isupper() or before.rstrip(" -").isupper() or behind.lstrip(" -+").isupper()


def _windows(run: Run, rules: Rules) -> Iterator[Span]:
    """Cards and identifiers: windows of groups with a known layout."""
    sizes = [str(end - begin) for begin, end in run.groups]
    for first in range(len(sizes)):
        layout = ""
        for last in range(first, min(first + MAX_GROUPS, len(sizes))):
            if last > first:
                if len(run.separators[last - 1]) > 1:
                    break
                layout += run.separators[last - 1]
            layout += sizes[last]
            if layout in rules.layouts and run.is_apart(first, last):
                yield from _judged(run, first, last, layout, rules)


def _judged(run: Run, first: int, last: int, layout: str, rules: Rules) -> Iterator[Span]:
    number = run.number(first, last)
    if (
        "credit_card" in rules.kinds
        and layout in _CARD_LAYOUTS
        and _CARD.fullmatch(number)
        and luhn.is_valid(number)
        and not CATALOGUED.search(run.preceding(first))
    ):
        yield run.span("credit_card", first, last)
    alone = any(check(number) for check in rules.alone.get(layout, ()))
    if (alone and not CATALOGUED.search(run.preceding(first))) or any(
        cue.stands_in(run.words) and check(number) for check, cue in rules.cued.get(layout, ())
    ):
        yield run.span("national_id", first, last)


def _with_capitals(text: str, rules: Rules) -> Iterator[Span]:
    """IBAN, and identifiers that begin with capitals."""
    for match in CAPITALS.finditer(text):
        at = match.start()
        if at and text[at - 1].isalnum():
            continue
        if "iban" in rules.kinds and (found := _iban_at(text, at)):
            yield found
        for pattern, check in rules.letters:
            hit = pattern.match(text, at)
            if hit and check(SPACES.sub("", hit.group())):
                yield Span("national_id", *hit.span())


def _iban_at(text: str, at: int) -> Span | None:
    match = _IBAN.match(text, at)
    if not match:
        return None
    # The longest reading first: a word in capitals behind an IBAN looks like one more group.
    end = match.end()
    while end - at >= 15:
        if not text[end : end + 1].isalnum():
            compact = re.sub(r"[^A-Z0-9]", "", text[at:end])
            if len(compact) <= 34 and iban.is_valid(compact, check_country=False):
                return Span("iban", at, end)
        end -= 1
    return None


def _ipv4(text: str, begin: int, finish: int) -> Iterator[Span]:
    for match in _IPV4.finditer(text, begin, finish):
        start, end = match.span()
        behind = text[end : end + 2]
        before = text[max(0, start - CUE_CHARS) : start]
        if behind[:1].isalnum() or before[-1:].isalnum() or _VERSION.search(before):
            continue
        parts = match.group().split(".")
        octets = [int(part) for part in parts]
        if max(octets) < 100 and _SECTION.search(before):
            continue
        if octets[0] in (0, 127) or octets[0] >= 224:  # unspecified, loopback, multicast, masks: nobody's
            continue
        # Sections have small parts, codes of products (PRODCOM) four parts of two digits, amounts a currency.
        large = sum(octet >= 40 for octet in octets)
        pairs = set(map(len, parts)) == {2} and not _FROM.search(before)
        alone = max(octets) >= 100 or large >= (3 if pairs else 2)
        named = _IP_CUE.search(before) or _IP_CUE.search(text[end : end + CUE_CHARS // 2])
        if named or (alone and not MONEY_BEFORE.search(before)):
            yield Span("ip", start, end)
