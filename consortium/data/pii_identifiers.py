"""National identifiers of persons: one table, checked with python-stdnum wherever it knows the rule.

A format is written as the lengths of its groups of digits with what stands between them: `3.3.3-2` is 123.456.789-09, a
space is any kind of space. `alone` are formats that are taken wherever they stand, because layout and check digits
together are rare by chance; `cued` are formats that look like any other number and are taken only within
`CUE_CHARS` characters after one of the words in `cue`. Identifiers with letters have a pattern instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from importlib import import_module

Check = Callable[[str], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identifier:
    """One kind of identifier. `check` gets it without spaces, dots and slashes (digits alone if it has no letters)."""

    state: str
    name: str
    check: str
    """Module of python-stdnum (`fr.nir`), or one of `OWN`."""
    alone: tuple[str, ...] = ()
    cued: tuple[str, ...] = ()
    letters: str = ""
    """Pattern of an identifier that holds letters, without word boundaries."""
    cue: str = ""
    """Words that announce it, in lower case: beginnings of words; whole words where they have three signs or fewer."""


_D, _L = "[0-9]", "[A-Z]"
_SVNR = "svnr|vsnr|sozialversicherung|rentenversicherung|versicherungsnummer|versicherten"

IDENTIFIERS: tuple[Identifier, ...] = (
    Identifier(state="ar", name="CUIT", check="ar.cuit", alone=("2-8-1",), cued=("11",), cue="cuit|cuil"),
    Identifier(state="ar", name="DNI", check="ar.dni", cued=("2.3.3", "8", "1.3.3"), cue="dni|documento"),
    Identifier(state="at", name="SVNR", check="at.vnr", cued=("10", "4 6", "4-6", "4/6"), cue=_SVNR),
    Identifier(
        state="be",
        name="NN",
        check="be.nn",
        alone=("2.2.2-3.2", "2.2.2-3-2", "6-3-2", "2.2.2 3.2", "2 2 2 3 2", "6 3 2", "11"),
    ),
    Identifier(state="bg", name="EGN", check="bg.egn", cued=("10",), cue="егн|egn"),
    Identifier(state="br", name="CPF", check="br.cpf", alone=("3.3.3-2", "9-2"), cued=("11", "3 3 3 2"), cue="cpf"),
    Identifier(state="br", name="CNPJ", check="br.cnpj", alone=("2.3.3/4-2",), cued=("14", "8/4-2"), cue="cnpj"),
    Identifier(state="ca", name="SIN", check="ca.sin", cued=("3-3-3", "3 3 3", "9"), cue="sin|nas|insurance"),
    Identifier(state="ch", name="AHV", check="ch.ssn", alone=("3.4.4.2", "13", "3 4 4 2")),
    Identifier(
        state="cl",
        name="RUT",
        check="cl.rut",
        alone=("2.3.3-1", "1.3.3-1"),
        cued=("8-1", "7-1", "9"),
        letters=rf"(?:{_D}{{1,2}}\.{_D}{{3}}\.{_D}{{3}}|{_D}{{7,8}})-K",
        cue="rut|run",
    ),
    Identifier(state="cz", name="RC", check="cz.rc", alone=("6/4", "6/3"), cued=("10",), cue="rodn|rč|rc"),
    Identifier(state="de", name="IdNr", check="de.idnr", alone=("11", "2 3 3 3")),
    Identifier(
        state="de",
        name="Steuernummer",
        check="de.stnr",
        alone=("2/3/5", "3/3/5", "3/4/4", "3/3/4 1", "2/3/4 1"),
        cued=("10", "11", "13", "3 3 5", "2 3 5", "3 4 4"),
        cue="steuer|stnr|st.-nr|st.nr|tax",
    ),
    Identifier(state="de", name="RVNR", check="de_rvnr", letters=rf"{_D}{{2}} ?{_D}{{6}} ?{_L} ?{_D}{{2}} ?{_D}"),
    Identifier(state="de", name="KVNR", check="de_kvnr", letters=rf"{_L}{_D}{{3}} ?{_D}{{3}} ?{_D}{{3}}"),
    Identifier(state="dk", name="CPR", check="dk.cpr", cued=("6-4", "10", "6 4"), cue="cpr|personnummer"),
    Identifier(state="ee", name="IK", check="ee.ik", cued=("11",), cue="isikukood|ik"),
    Identifier(
        state="es", name="DNI", check="es.dni", letters=rf"(?:{_D}{{8}}|{_D}{{1,2}}\.{_D}{{3}}\.{_D}{{3}})[- ]?{_L}"
    ),
    Identifier(
        state="es", name="NIE", check="es.nie", letters=rf"[XYZ][- ]?(?:{_D}{{7}}|{_D}\.{_D}{{3}}\.{_D}{{3}})[- ]?{_L}"
    ),
    Identifier(
        state="es",
        name="NUSS",
        check="es_nuss",
        alone=("2/8/2", "2-8-2", "2 8 2", "12"),
        cued=("2/10", "2 10"),
        cue="nuss|seguridad|afiliaci",
    ),
    Identifier(state="fi", name="HETU", check="fi.hetu", letters=rf"{_D}{{6}}[-+A-FU-Y]{_D}{{3}}[0-9A-Y]"),
    Identifier(
        state="fr",
        name="NIR",
        check="fr.nir",
        alone=("15", "13 2", "1 2 2 2 3 3 2", "1.2.2.2.3.3.2", "1-2-2-2-3-3-2", "1 2 2 2 3 3-2"),
    ),
    Identifier(
        state="fr",
        name="NIR",
        check="fr.nir",
        letters=rf"[1-8] ?{_D}{{2}} ?{_D}{{2}} ?2[AB] ?{_D}{{3}} ?{_D}{{3}} ?{_D}{{2}}",
    ),
    Identifier(
        state="fr",
        name="NIR without key",
        check="fr_nir_13",
        cued=("13", "1 2 2 2 3 3"),
        cue="sécu|secu|nir|insee|immatriculation",
    ),
    Identifier(state="fr", name="NIF", check="fr.nif", alone=("2 2 3 3 3", "13")),
    Identifier(
        state="gb",
        name="NINO",
        check="gb_nino",
        letters=r"[A-Z]{2}(?:[0-9]{6}| ?[0-9]{2} [0-9]{2} [0-9]{2}| [0-9]{6}) ?[A-DT]",
    ),
    Identifier(state="gb", name="NHS", check="gb.nhs", cued=("3 3 4", "10", "3-3-4"), cue="nhs"),
    Identifier(state="gb", name="UTR", check="gb.utr", cued=("5 5", "10"), cue="utr|taxpayer"),
    Identifier(state="gr", name="AMKA", check="gr.amka", cued=("11",), cue="αμκα|amka"),
    Identifier(state="hr", name="OIB", check="hr.oib", cued=("11",), cue="oib"),
    Identifier(state="ie", name="PPS", check="ie.pps", letters=rf"{_D}{{7}}[A-W][A-IW]?"),
    Identifier(
        state="it",
        name="codice fiscale",
        check="it.codicefiscale",
        letters=(
            r"[A-Z]{3} ?[A-Z]{3} ?[0-9LMNPQRSTUV]{2}[ABCDEHLMPRST][0-9LMNPQRSTUV]{2} ?"
            r"[A-Z][0-9LMNPQRSTUV]{3} ?[A-Z]"
        ),
    ),
    Identifier(state="lt", name="asmens kodas", check="lt.asmens", cued=("11",), cue="asmens"),
    Identifier(state="lv", name="PK", check="lv.pvn", alone=("6-5",), cued=("11",), cue="personas"),
    Identifier(state="mx", name="CURP", check="mx.curp", letters=r"[A-Z]{4}[0-9]{6}[HMX][A-Z]{5}[0-9A-Z][0-9]"),
    Identifier(
        state="nl",
        name="BSN",
        check="nl.bsn",
        cued=("9", "3 3 3", "3.3.3", "4.2.3", "4 2 3", "8"),
        cue="bsn|burgerservice|sofi|servicenummer|persoonsnummer",
    ),
    Identifier(
        state="no", name="FNR", check="no.fodselsnummer", alone=("6 5",), cued=("11",), cue="fødsels|fodsels|fnr"
    ),
    Identifier(state="pl", name="PESEL", check="pl.pesel", cued=("11",), cue="pesel"),
    Identifier(
        state="pt",
        name="NIF",
        check="pt.nif",
        cued=("9", "3 3 3", "3.3.3"),
        cue="nif|n.i.f|nipc|contribuinte|fiscal",
    ),
    Identifier(state="pt", name="CC", check="pt.cc", letters=rf"{_D}{{8}}[ -]?{_D}[ -]?[A-Z0-9]{{2}}{_D}"),
    Identifier(state="ro", name="CNP", check="ro.cnp", cued=("13",), cue="cnp|numeric"),
    Identifier(
        state="se",
        name="personnummer",
        check="se.personnummer",
        alone=("6-4", "8-4"),
        cued=("10", "12"),
        cue="personnummer",
    ),
    Identifier(state="si", name="EMSO", check="si.emso", cued=("13",), cue="emšo|emso"),
    Identifier(state="sk", name="RC", check="cz.rc", alone=("6/4", "6/3"), cued=("10",), cue="rodn|rč|rc"),
    Identifier(
        state="us",
        name="SSN, ITIN or ATIN",
        check="us_taxpayer",
        alone=("3-2-4",),
        cued=("9", "3 2 4"),
        cue="ssn|security|itin|taxpayer",
    ),
    Identifier(
        state="uy",
        name="CI",
        check="uy_ci",
        alone=("1.3.3-1", "7-1", "1 3 3-1"),
        cued=("8", "7", "6-1", "1.3.3.1", "1 3 3 1", "3.3-1", "1.3.3/1"),
        cue="ci|c.i|cédula|cedula|documento|identidad|doc",
    ),
    Identifier(
        state="uy",
        name="CI with a misprint",
        check="uy_ci_misprint",
        cued=("1.3.3-1", "3.3-1"),
        cue="cédula|cedula",
    ),
    Identifier(state="uy", name="RUT", check="uy.rut", alone=("12", "2 6 4", "2 6 3 1", "2.6.4", "2-6-4"), cue="rut"),
)
STATES = tuple(sorted({row.state for row in IDENTIFIERS}))
"""States (ISO 3166 alpha-2, lower case) whose identifiers are known."""


def check(name: str) -> Check:
    """Return the check of a row: python-stdnum's `is_valid`, or ours."""
    return OWN[name] if name in OWN else _stdnum(name)


@lru_cache(maxsize=128)
def _stdnum(name: str) -> Check:
    found: Check = import_module(f"stdnum.{name}").is_valid
    return found


def uy_ci(number: str) -> bool:
    """Cédula de identidad of Uruguay: 2987634-weighted sum modulo 10 (Dirección Nacional de Identificación Civil)."""
    digits = number.zfill(8)
    if len(digits) != 8 or len(set(digits)) == 1:
        return False
    total = sum(int(digit) * weight for digit, weight in zip(digits, (2, 9, 8, 7, 6, 3, 4), strict=False))
    return int(digits[7]) == -total % 10


def us_taxpayer(number: str) -> bool:
    """American SSN, ITIN or ATIN: no check digit, so numbers that were never given out are refused."""
    return number[:3] not in ("000", "666") and number[3:5] != "00" and number[5:] != "0000"


def uy_ci_misprint(number: str) -> bool:
    """A cédula written out as one behind its full name, whose check digit is wrong: somebody's all the same."""
    return 7 <= len(number) <= 8


def es_nuss(number: str) -> bool:
    """Spanish social security number: province, 8 digits, and the remainder of both by 97."""
    province, body, key = number[:2], number[2:10], number[10:]
    if not (1 <= int(province) <= 53 or province == "66"):
        return False
    # A body below ten million is read in two ways: with its leading zero, or as a number joined to the province.
    values = {int(province + body)}
    if body[0] == "0":
        values.add(int(province) * 10_000_000 + int(body))
    return any(value % 97 == int(key) for value in values)


def fr_nir_13(number: str) -> bool:
    """French NIR without its key: sex, and a month of birth that INSEE gives out."""
    return number[0] in "12378" and (1 <= int(number[3:5]) <= 12 or 20 <= int(number[3:5]) <= 99)


def de_rvnr(number: str) -> bool:
    """German pension insurance number: area, date of birth, letter, serial, check digit (VKVV)."""
    day = int(number[2:4])
    if not (_is_date(day, int(number[4:6])) or _is_date(day - 50, int(number[4:6]))):
        return False
    digits = f"{number[:8]}{ord(number[8]) - 64:02d}{number[9:11]}"
    products = (int(digit) * weight for digit, weight in zip(digits, (2, 1, 2, 5, 7, 1, 2, 1, 2, 1, 2, 1), strict=True))
    return sum(product // 10 + product % 10 for product in products) % 10 == int(number[11])


def de_kvnr(number: str) -> bool:
    """German health insurance number, the part that stays for life: letter, 8 digits, check digit (modulo 10, 1-2)."""
    digits = f"{ord(number[0]) - 64:02d}{number[1:9]}"
    products = (int(digit) * (1 + at % 2) for at, digit in enumerate(digits))
    return sum(product // 10 + product % 10 for product in products) % 10 == int(number[9])


def gb_nino(number: str) -> bool:
    """British National Insurance number: no check digit, so letters that HMRC does not use are refused (NIM39110)."""
    if number[:2] == "ZZ" and number[-1] == "T":  # reserved for samples
        return True
    first, second = number[0], number[1]
    refused = first in "DFIQUV" and number[:2] != "QQ"
    return not (refused or second in "DFIOUV" or number[:2] in ("BG", "GB", "KN", "NK", "NT", "TN"))


def _is_date(day: int, month: int) -> bool:
    try:
        date(2000, month, day)
    except ValueError:
        return False
    return True


OWN: dict[str, Check] = {
    f.__name__: f for f in (us_taxpayer, uy_ci, uy_ci_misprint, es_nuss, fr_nir_13, de_rvnr, de_kvnr, gb_nino)
}
SPACES = re.compile(r"[ ./\u00a0\u2007\u2009\u202f]")
"""What is taken out of an identifier with letters before its check; hyphens stay, for some mean something."""
