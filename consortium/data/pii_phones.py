"""Telephone numbers: international ones anywhere, national ones by layout or behind a word, checked by phonenumbers.

phonenumbers' own matcher goes over a text once per state, at a few megabytes a second; here it judges candidates only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

import phonenumbers
from phonenumbers import NumberParseException, ValidationResult

from consortium.data.pii_numbers import (
    BLANKS,
    CITED,
    DATE,
    EXTENSION,
    MAX_GROUPS,
    NUMBERED,
    PLAIN,
    UNIT_BEHIND,
    Cue,
    Run,
    Span,
)

_PLUS = re.compile(
    rf"(?<![\w+])\(?\+[ {BLANKS}]?[1-9][0-9]{{0,2}}\)?"
    rf"(?:(?:\.(?! )|[ /\-{BLANKS}\u2011]){{0,2}}(?:\([0-9]{{1,5}}\)|[0-9]+)){{1,7}}(?![0-9])"
)
_PHONE_CUE = re.compile(
    r"(?<![^\W\d_])(?:tfno?|t[ée]l(?:[ée]?f[oóe]no?|[ée]phon|[ée]?fax|[ée]copie|em[oó]vel|s? ?[.:/]"
    r"|s? ?(?:n[°ºo.]+ ?)?$)"
    r"|tlf|tlm|(?<!\[)phone|fon ?[.:]|fax|mobil(?:e|funk)?(?![^\W\d_])|m[óo]vil(?![^\W\d_])|handy|celular|cel\."
    r"|whatsapp|sms|ruf(?:en|nummer)?(?![^\W\d_])|call(?![^\W\d_])|dial(?![^\W\d_])|reach|appele[zr]|joindre|joignable"
    r"|rappele|anruf|r[üu]ckruf|erreichbar|erreichen|durchwahl|llam[aeá]|marcar|marque el|comunicarse|contact|kontakt"
    r"|hotline|ligue|ligar|(?:my|your|his|her) number|(?:mon|son|votre) num[ée]ro|meine nummer"
    r"|(?:mi|su) n[úu]mero|n[úu]mero es)|☎|📞",
    re.IGNORECASE,
)
_ELSEWHERE = re.compile(r"[0-9]|[.!?]\s+[^\W\d_]{2}|\n\s*\n\s*[^\W\d_]")
"""Between such a word and the number: another number, another sentence, another paragraph."""
_FOUND = "[PHONE]"
_LISTED = re.compile(
    r"[\s,;/|&+()\-\u2010-\u2014]*(?:(?:ou|et|oder|und|bzw\.|sowie|u|o|y|e|or|and)(?![^\W\d_]))?[\s(/]*", re.IGNORECASE
)
"""Between a number found before and the next one of its list."""
_IN_LIST = re.compile(r"[0-9][\s,;]*$|[^\s(][^\s\w]$|[=\[{<>/*^|'\"]\s*$")
"""Before digits in a row: another number, or a sign of a program or a formula."""
_WIDE = re.compile(r".{4}|\. ")
_TERM = re.compile(r"\+ [0-9]+(?:\.[0-9]+)?")  # of a sum
_COUNTRY = re.compile(r"\+ ?[0-9]{1,3} ?(?:\(0\))?\s*$")  # of a number that a line break cuts in two
_PHONE_WORDS = Cue(
    "tel|tél|tels|téls|tfn|tfno|tlf|tlm|telef|teléf|teleph|téléph|telep|télép|téléf|téléc|telemov|telemóv|telec|phone|fon|fax"
    "|mobil|móvil|movil|handy|cel|celular|whatsapp|sms|ruf|rufen|rufnummer|call|dial|reach|appele|rappele|join|anruf|rückruf"
    "|erreich|durchwahl|llam|marca|marque|comunicarse|contact|kontakt|hotline|ligue|ligar|number|numéro|numero|número|nummer"
)
"""Words of which `_PHONE_CUE` takes a closer look."""
VALID = 2
_NANP = re.compile("(?:1(?=[0-9]{10}$))?[2-9][0-9]{2}[2-9]")
_NATIONAL: dict[tuple[str, str], tuple[frozenset[str], re.Pattern[str], int]] = {
    # By region, and by language where only that language's texts use the layout for telephones more than for other
    # things: layouts of numbers without a leading zero or a word before them, their first digits, the grade they need.
    ("US", ""): (frozenset({"3-3-4", "3.3.4", "(3)3-4", "(3) 3-4", "3 3-4", "1-3-3-4", "1.3.3.4"}), _NANP, 1),
    ("CA", ""): (frozenset({"3-3-4", "3.3.4", "(3)3-4", "(3) 3-4", "3 3-4", "1-3-3-4", "1.3.3.4"}), _NANP, 1),
    ("ES", ""): (frozenset({"3 2 2 2", "2 3 2 2", "3-3-3", "3.2.2.2", "3-2-2-2"}), re.compile("[6-9]"), VALID),
    ("IT", ""): (frozenset({"3 3 4", "3 7", "3-7", "3.3.4", "3/7"}), re.compile("3"), VALID),
    ("BR", "pt"): (frozenset({"2 5-4", "2 4-4", "(2) 5-4", "(2) 4-4"}), re.compile("[1-9]"), 1),
    ("BR", ""): (frozenset({"(2)5-4", "(2) 5-4", "(2) 4-4", "(2)4-4", "2 5-4", "2 4-4"}), re.compile("[1-9]"), VALID),
    ("PT", ""): (frozenset({"(3)9", "(3) 9", "(3) 3 3 3"}), re.compile("351[29]"), 0),
    ("US", "en"): (frozenset({"10", "3 3 4"}), _NANP, 1),
    ("CA", "en"): (frozenset({"10", "3 3 4"}), _NANP, 1),
    ("ES", "es"): (frozenset({"3 3 3"}), re.compile("[679]"), VALID),
    ("PT", "pt"): (frozenset({"3 3 3", "9"}), re.compile("9[1236]|2[1-9]"), VALID),
    ("IT", "it"): (frozenset({"10"}), re.compile("3"), VALID),
}
_ZERO_LAYOUTS = frozenset({(2, 2, 2, 2, 2), (2, 3, 2, 2), (3, 3, 2, 2), (3, 2, 2, 2), (4, 3, 2, 2), (4, 3, 2, 3)})
_SPOKEN = {
    "de": ("AT", "CH", "DE"),
    "en": ("CA", "GB", "IE", "US"),
    "es": ("AR", "CL", "ES", "MX", "UY"),
    "fr": ("BE", "CA", "CH", "FR"),
    "it": ("CH", "IT"),
    "nl": ("BE", "NL"),
    "pt": ("BR", "PT"),
}
"""Where a language is spoken: numbers of nine digits with a leading zero count as telephones only there."""
_NO_LAYOUT: tuple[frozenset[str], re.Pattern[str], int] = (frozenset(), re.compile(""), VALID)
_NO_PHONE = re.compile(
    r"(?:19|20)[0-9]{2}\D{1,3}(?:19|20)[0-9]{2}|[0-9] [0-9]{3}\.[0-9]{3}|[0-9]{1,3}(?:\.[0-9]{3}){2,}|.* 0"
    r"|[0-9]{1,3}(?:\.[0-9]{1,3}){3}"
)
"""Behind a word such as `Tel.`: two years, an amount, a row of a table, an address of a computer."""


def in_run(run: Run, regions: tuple[str, ...], language: str) -> Iterator[Span]:
    """Find telephone numbers without a plus in a run."""
    cued = _has_phone_cue(run)
    if not cued and run.digits < 9:
        return
    first = 0
    while first < len(run.groups):
        last = _phone_from(run, first, cued and not first, regions, language)
        if last is None:
            first += 1
            continue
        kind, start, end = run.span("phone", first, last)
        extension = EXTENSION.match(run.text, end)
        opened = run.text[start - 1 : start] == "(" and ")" in run.text[start:end]
        yield Span(kind, start - opened, extension.end() if extension else end)
        first = last + 1


def _has_phone_cue(run: Run) -> bool:
    if not (_PHONE_WORDS.stands_in(run.words) or "☎" in run.before or "📞" in run.before) or DATE.match(run.string):
        return False
    *_, behind_last = 0, *(match.end() for match in _PHONE_CUE.finditer(run.before))
    between = _COUNTRY.sub("", run.before[behind_last:])
    _, found, since = between.rpartition(_FOUND)
    return behind_last > 0 and not _ELSEWHERE.search(between) and (not found or bool(_LISTED.fullmatch(since)))


def _phone_from(run: Run, first: int, cued: bool, regions: tuple[str, ...], language: str) -> int | None:
    """Return the last group of a telephone number that begins with group `first`, the longest reading that holds."""
    zero = run.string[run.groups[first][0]] == "0"
    if not (zero or cued or run.digits >= 9) or not run.begins_apart(first):
        return None
    for last in range(min(first + MAX_GROUPS, len(run.groups)) - 1, first - 1, -1):
        number = run.number(first, last)
        if len(number) < 7:
            break
        if len(number) > 15 or any(map(_WIDE.search, run.separators[first:last])):
            continue
        if cued:
            stands = not _NO_PHONE.fullmatch(run.string, *run.inner(first, last)) and (
                grade(number, regions) > 0 or (number.startswith("00") and grade(number[1:], regions) > 0)
            )
        elif zero:
            stands = _zero_stands(run, first, last, number, regions, language)
        else:
            stands = _national_stands(run, first, last, number, regions, language)
        if stands and run.is_apart(first, last) and _may_be_phone(run, first, last, cued):
            return last
    return None


def _may_be_phone(run: Run, first: int, last: int, cued: bool) -> bool:
    """Tell whether nothing before the number says that it is another kind of number."""
    preceding = run.preceding(first)
    if CITED.search(preceding):
        return False
    return cued or first != last or not NUMBERED.search(preceding)


def _zero_stands(run: Run, first: int, last: int, number: str, regions: tuple[str, ...], language: str) -> bool:
    """Tell whether a number with a leading zero and no word before it is written as telephone numbers are."""
    sizes = [end - begin for begin, end in run.groups[first : last + 1]]
    separators, total = run.separators[first:last], len(number)
    opened = run.is_opened(first)
    if any(")" in separator or "(" in separator for separator in separators[1 if opened else 0 :]):
        return False
    home = tuple(region for region in regions if region in _SPOKEN.get(language, regions))
    if number.startswith("00") and sizes[0] > 1:
        if number[2:3] != "0" and total >= 11 and grade(number, regions):
            return True
        # A misprint of an area code; without layout it is a number filled up with zeros.
        return (opened or len(sizes) == 2) and 10 <= total <= 12 and grade(number[1:], regions) > 0
    if total < 9 or total > 13 or number.startswith("00") or number == "0123456789" * (len(sizes) == 1):
        return False
    how = grade(number, regions if total > 9 else home)
    if opened or (total > 9 and len(sizes) == 1):
        return how > 0
    if len(sizes) == 1:
        return how == VALID
    if sizes == [5, 4] and separators == ["-"]:
        return False  # an American postal code
    if sizes[0] in (3, 4, 5, 6) and min(sizes[1:]) >= 3:
        return how == VALID or (how > 0 and total > 9)
    # Customs headings look like 0805 10 20 00; only Belgian mobile numbers with that layout begin with 04[5-9].
    known = tuple(sizes) in _ZERO_LAYOUTS or (sizes == [4, 2, 2, 2] and re.match("04[5-9]", number))
    return how == VALID and bool(known) and len(set(separators[1:])) < 2


def _national_stands(run: Run, first: int, last: int, number: str, regions: tuple[str, ...], language: str) -> bool:
    """Tell whether a number without leading zero or word before it has a layout that a state uses for telephones."""
    if first == last and _IN_LIST.search(run.preceding(first)):
        return False
    if not 9 <= len(number) <= 12 or UNIT_BEHIND.match(run.text, run.start + run.groups[last][1]):
        return False
    layout = "(" * run.is_opened(first) + "".join(
        f"{separator}{end - begin}"
        for separator, (begin, end) in zip(["", *run.separators[first:last]], run.groups[first : last + 1], strict=True)
    )
    for region in regions:
        for key in ((region, ""), (region, language)):
            layouts, digits, wanted = _NATIONAL.get(key, _NO_LAYOUT)
            if layout in layouts and digits.match(number) and grade(number, (region,)) >= wanted:
                return True
    return False


@lru_cache(maxsize=4096)
def grade(number: str, regions: tuple[str, ...]) -> int:
    """Return 2 for a number that one of `regions` has given out, 1 for a possible one, else 0 (from phonenumbers)."""
    best = 0
    international = number.startswith(("+", "00"))
    written = "+" + number.lstrip("+0") if international else number
    for region in (None,) if international else regions:
        try:
            parsed = phonenumbers.parse(written, region)
        except NumberParseException:
            continue
        if phonenumbers.is_possible_number_with_reason(parsed) == ValidationResult.IS_POSSIBLE:
            if phonenumbers.is_valid_number(parsed):
                return VALID
            best = 1
    return best


def with_plus(text: str) -> Iterator[Span]:
    """International telephone numbers: a plus, a country code, and as many groups as make a possible number."""
    for match in _PLUS.finditer(text):
        start = match.start()
        opened = text[start] == "("
        body = match.group()
        while sum(map(str.isdigit, body)) >= 7:
            number = re.sub(r"[^0-9]", "", body.translate(PLAIN).replace("(0)", ""))
            behind = start + len(body)
            extension = EXTENSION.match(text, behind)
            tied = (text[behind : behind + 1].isalnum() and not extension) or UNIT_BEHIND.match(text, behind)
            if len(number) <= 15 and not tied and not _TERM.fullmatch(body) and grade(f"+{number}", ()):
                closed = opened and ")" in body[: body.find("(", 1)]
                yield Span("phone", start + (opened and not closed), extension.end() if extension else behind)
                break
            body = body.rstrip("0123456789)").rstrip(f" ./(-{BLANKS}\u2011")
