"""Texts with personal data at known places, and with numbers that look like it and are not.

Values come from Faker and from small generators for what it lacks (Uruguay, tokens). They stand in sentences of four
languages, half of the telephone numbers without a word that announces them, between sentences in the manner of statutes
with law citations, dates, amounts, versions, tables and catalogue numbers. The same language, size and seed give the
same text under one version of Faker.
"""

from __future__ import annotations

import base64
import itertools
import random
import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from faker import Faker
from stdnum import luhn
from stdnum.de import idnr
from stdnum.pt import nif
from stdnum.uy import rut

from consortium.data.pii import PiiConfig, redact
from consortium.data.pii_identifiers import uy_ci
from consortium.data.pii_numbers import Span

LOCALES = {"fr": ("fr_FR",), "de": ("de_DE",), "es": ("es_ES",), "en": ("en_GB", "en_US"), "pt": ("pt_PT", "pt_BR")}

_SENTENCES: dict[str, dict[str, tuple[str, ...]]] = {
    "fr": {
        "email": ("Les observations sont adressées à {} avant la clôture.", "Écrire à {}.", "Courriel : {}"),
        "ip": (
            "La requête venait de l'adresse {}.",
            "Le serveur {} ne répondait plus.",
            "Connexion depuis {} refusée.",
        ),
        "phone": ("Tél. : {}", "Vous pouvez nous appeler au {} en semaine.", "Le secrétariat ({}) est ouvert."),
        "bare_phone": ("Madame Durand, {}, a déposé la demande.", "Permanence de la mairie, {}.", "Service : {}"),
        "iban": ("Le virement est fait sur le compte {}.", "IBAN {}", "Compte ({}) clôturé."),
        "national_id": ("Assuré sous le numéro {}.", "NIR : {}", "Son identifiant est {}, selon le dossier."),
        "credit_card": ("Carte {} expirant le 03/27.", "Le paiement par carte n° {} a été refusé.", "CB {}"),
        "secret": ("mot de passe : {}", "password={}", 'api_key = "{}"', "Le jeton est token: {}"),
    },
    "de": {
        "email": ("Stellungnahmen sind an {} zu richten.", "E-Mail: {}", "Er schrieb an {}, ohne Antwort."),
        "ip": (
            "Die Anfrage kam von der Adresse {}.",
            "Der Server {} war nicht erreichbar.",
            "Zugriff von {} gesperrt.",
        ),
        "phone": ("Tel.: {}", "Sie erreichen uns unter {} werktags.", "Telefon {}, Zimmer 12"),
        "bare_phone": ("Frau Schmidt, {}, hat den Antrag gestellt.", "Sekretariat: {}", "Auskunft erteilt {}."),
        "iban": ("Der Betrag ist auf das Konto {} zu überweisen.", "IBAN: {}", "Konto ({}) aufgelöst."),
        "national_id": ("Die Nummer {} wurde vergeben.", "Identifikationsnummer: {}", "Versichert unter {}, seit Mai."),
        "credit_card": ("Die Kreditkarte {} wurde gesperrt.", "Kartennummer: {}", "Zahlung mit Karte {}."),
        "secret": ("Passwort: {}", "password={}", 'api_key = "{}"', "Das Kennwort lautet {}"),
    },
    "es": {
        "email": (
            "Las observaciones se enviarán a {} antes del cierre.",
            "Correo: {}",
            "Escribió a {}, sin respuesta.",
        ),
        "ip": ("La solicitud provino de la dirección {}.", "El servidor {} no respondía.", "Acceso desde {} denegado."),
        "phone": ("Tel.: {}", "Puede llamar al {} en horario de oficina.", "Teléfono {}, oficina 12"),
        "bare_phone": ("La señora Pérez, {}, presentó la solicitud.", "Mesa de entrada: {}", "Informes en {}."),
        "iban": ("El importe se abonará en la cuenta {}.", "IBAN: {}", "Cuenta ({}) cancelada."),
        "national_id": ("Titular del documento {}.", "Cédula de identidad N° {}", "Con documento {}, casado."),
        "credit_card": ("La tarjeta {} fue anulada.", "Tarjeta N° {}", "Pago con tarjeta {}."),
        "secret": ("contraseña: {}", "password={}", 'api_key = "{}"', "clave = {}"),
    },
    "en": {
        "email": ("Comments are to be sent to {} before the deadline.", "E-mail: {}", "She wrote to {}, in vain."),
        "ip": ("The request came from {}.", "The server {} was down.", "Login from {} refused."),
        "phone": ("Phone: {}", "You can call us on {} on weekdays.", "Telephone {}, room 12"),
        "bare_phone": ("Mrs Smith, {}, made the application.", "Front desk: {}", "Enquiries to {}."),
        "iban": ("The amount is paid to account {}.", "IBAN: {}", "Account ({}) closed."),
        "national_id": ("Registered under {}.", "Number: {}", "Holder of {}, since May."),
        "credit_card": ("Card {} was blocked.", "Card number: {}", "Paid with card {}."),
        "secret": ("password: {}", "password={}", 'api_key = "{}"', "The password is {}"),
    },
    "pt": {
        "email": ("As observações são enviadas para {}.", "E-mail: {}"),
        "ip": ("O pedido veio do endereço {}.", "O servidor {} não respondia."),
        "phone": ("Telefone: {}", "Pode ligar para {} nos dias úteis."),
        "bare_phone": ("A senhora Silva, {}, apresentou o pedido.", "Receção: {}"),
        "iban": ("O valor é pago na conta {}.", "IBAN: {}"),
        "national_id": ("Contribuinte n.º {}.", "NIF {}"),
        "credit_card": ("O cartão {} foi anulado.", "Cartão: {}"),
        "secret": ("senha: {}", "password={}", 'api_key = "{}"'),
    },
}

_CARRIERS: dict[str, tuple[str, ...]] = {
    "fr": (
        "Le préfet du département peut, après avis de la commission, autoriser l'exploitation des installations.",
        "Un décret en Conseil d'Etat fixe les conditions dans lesquelles les agents sont habilités.",
    ),
    "de": (
        "Die zuständige Behörde kann nach Anhörung der Gemeinde eine Genehmigung erteilen.",
        "Das Nähere wird durch Rechtsverordnung des Bundesministeriums geregelt.",
    ),
    "es": (
        "El Poder Ejecutivo podrá autorizar la explotación de las instalaciones por un plazo determinado.",
        "La reglamentación determinará las condiciones en que los funcionarios podrán comprobarlo.",
    ),
    "en": (
        "The competent authority may, after hearing the municipality, grant a permit.",
        "The conditions are laid down by order of the Secretary of State.",
    ),
    "pt": ("O Poder Executivo poderá autorizar a exploração das instalações por um prazo determinado.",),
}

_NOTHING_PERSONAL: dict[str, tuple[str, ...]] = {
    "fr": (
        "Article L. {d4}-{d2}-{d1} du code de la santé publique, modifié par la loi n° 20{d2}-{d4} du 12 mars 20{d2}.",
        "JORF n°0{d3} du {day}/{month}/20{d2}, NOR : JUSX{d7}L.",
        "Le montant de {amount_space},{d2} euros est inscrit au budget, soit {amount_space} francs.",
        "Population : {amount_space} habitants en 20{d2}, {amount_space} en 20{d2}.",
        "SIRET {d3} {d3} {d3} 000{d2}, RCS Paris {d3} {d3} {d3}.",
        "Règlement (UE) {d4}/{d4} et directive 20{d2}/{d3}/CE, articles 1er, 2, 3 et {d3}.",
        "Le dossier n° {d4}-{d6} est enregistré.",
    ),
    "de": (
        "§ {d3} Abs. 2 Nr. 3 BGB, BGBl. I S. {d4}, {d4}; §§ 1, 2, {d3}, {d4}.",
        "Nummer {s}.{s}.{s}.{s} der Anlage gilt nicht für Abschnitt {s}.{s}.{s}.{s}.",
        "Der Betrag von {amount_dot},{d2} Euro, das sind {amount_dot} Euro je Jahr.",
        "Az. {d2} C {d3}/{d2}, BT-Drs. 19/{d5}, ABl. L {d3} vom {day}.{month}.20{d2}, S. {d2}.",
        "CAS-Nr. {d5}-{d2}-{d1}, EG-Nr. 2{d2}-{d3}-{d1}, Unterposition {d4} {d2} {d2}.",
        "Rechnungsnummer {d10} vom {day}.{month}.20{d2}.",
        "Einwohner: {amount_nbsp}, Fläche: {amount_nbsp} ha.",
    ),
    "es": (
        "Decreto N° {d3}/0{d2} de {day}/{month}/20{d2}, Ley N° 1{d1}.{d3}, artículo {d3}.",
        "La suma de $ {amount_dot},{d2} (pesos uruguayos {amount_dot}).",
        "Expediente 20{d2}-{d2}-{d1}-{d7}, padrón {d6}, sección {d2}.",
        "Inciso U.E. 0{d1} 0{d2} 19{d2} Transportes {amount_dot} 0",
        "BOE-A-20{d2}-{d5}, artículos {d2} a {d3}, período 20{d2}-20{d2}.",
        "Población: {amount_dot} habitantes; superficie: {amount_dot} hectáreas.",
    ),
    "en": (
        "Case C-{d3}/{d2}, ECLI:EU:C:20{d2}:{d3}, CELEX 6{d4}CJ0{d3}.",
        "ISBN 978-3-{d2}-{d6}-{d1}; ISBN 978{d10}; version 2.{s}.{s}.{s}; release {s}.{s}.{s}.{s}.",
        "A sum of ${amount_comma}.{d2}, or {amount_comma} dollars, for {amount_comma} inhabitants.",
        "Regulation (EU) 20{d2}/{d3}, sections {d3}, {d3} and {d4}, {day}/{month}/20{d2}.",
        "Invoice {d8}, order {d10}, part 12-{d4}-{d3}, at {hour}:{minute}:{second}.",
        "| 20{d2} | {amount_comma} | {d3}.{d2} | {d2}.{d1} % | {amount_comma} |",
    ),
    "pt": (
        "Lei n.º {d2}/20{d2}, de {d2} de maio, artigo {d3}.º, n.º 2, Decreto-Lei n.º {d3}/{d2}.",
        "O montante de {amount_dot},{d2} euros, para {amount_dot} habitantes.",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """A text, its language, and the personal data in it, in order."""

    text: str
    language: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How well a search found the truth: values there, values found, findings, right findings; by kind."""

    there: Counter[str]
    hit: Counter[str]
    found: Counter[str]

    def recall(self, kind: str | None = None) -> float:
        """Return the share of what was there that was found, with its kind and its exact place."""
        there, hit = (counts[kind] if kind else counts.total() for counts in (self.there, self.hit))
        return hit / there

    def precision(self, kind: str | None = None) -> float:
        """Return the share of findings that were there, with that kind and at that exact place."""
        found, hit = (counts[kind] if kind else counts.total() for counts in (self.found, self.hit))
        return hit / found


def labelled(language: str, documents: int, seed: int = 0) -> Iterator[Labelled]:
    """Yield documents of some ten sentences, three of them with personal data, four with other numbers."""
    draw = random.Random(f"{language}/{documents}/{seed}")
    makers = _makers(language, draw)
    kinds = sorted(_SENTENCES[language])
    for _ in range(documents):
        pieces = [
            (template.format_map(_Numbers(draw)), "", "") for template in draw.choices(_NOTHING_PERSONAL[language], k=4)
        ]
        pieces += [(text, "", "") for text in draw.choices(_CARRIERS[language], k=3)]
        for kind in draw.sample(kinds, 3):
            value = makers[kind]()
            pieces.append((draw.choice(_SENTENCES[language][kind]), kind.removeprefix("bare_"), value))
        draw.shuffle(pieces)
        yield _joined(pieces, language, draw)


def score(documents: Iterable[Labelled], config: PiiConfig) -> tuple[Score, list[str]]:
    """Return the score over `documents`, and every miss and every false finding in its surroundings."""
    result = Score(there=Counter(), hit=Counter(), found=Counter())
    wrong = []
    for document in documents:
        found = {*redact(document.text, config, document.language)[1]}
        there = {*document.spans}
        for counts, spans in ((result.there, there), (result.found, found), (result.hit, there & found)):
            counts.update(span.kind for span in spans)
        for span in sorted(there ^ found):
            around, value = document.text[max(0, span.start - 30) : span.end + 12], document.text[span.start : span.end]
            wrong.append(f"{'missed' if span in there else 'false'} {span.kind}: {value!r} in {around!r}")
    return result, wrong


def _joined(pieces: Sequence[tuple[str, str, str]], language: str, draw: random.Random) -> Labelled:
    text, spans = "", []
    for template, kind, value in pieces:
        if kind:
            before, _, behind = template.partition("{}")
            start = len(text) + len(before)
            spans.append(Span(kind, start, start + len(value)))
            text += before + value + behind
        else:
            text += template
        text += draw.choice(("\n", "\n\n")) if not text.endswith(".") else draw.choice((" ", "\n"))
    return Labelled(text=text, language=language, spans=tuple(spans))


class _Numbers(dict[str, str]):
    """What the templates without personal data ask for."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        self.draw = draw

    def __missing__(self, key: str) -> str:
        draw = self.draw
        if key.startswith("amount_"):
            sign = {"space": " ", "dot": ".", "comma": ",", "nbsp": "\u00a0"}[key.removeprefix("amount_")]
            return f"{draw.randrange(10**4, 10**9):,}".replace(",", sign)
        ranges = {"day": (1, 28), "month": (1, 12), "hour": (0, 23), "minute": (0, 59), "second": (0, 59)}
        if key in ranges:
            return f"{draw.randint(*ranges[key]):02d}"
        if key == "s":
            return str(draw.randint(1, 30))
        size = int(key[1:])
        return str(draw.randrange(10 ** (size - 1), 10**size))


def _makers(language: str, draw: random.Random) -> dict[str, Callable[[], str]]:
    """Return a generator of values per kind of sentence."""
    fakers: list[Any] = [Faker(locale, use_weighting=False) for locale in LOCALES[language]]
    for faker in fakers:
        faker.seed_instance(draw.getrandbits(64))
    random.seed(draw.getrandbits(64))  # Faker's es_ES identifiers come from the module's own generator

    def pick() -> Any:
        return draw.choice(fakers)

    def phone() -> str:
        return _uruguayan_phone(draw) if language == "es" and draw.random() < 0.4 else _dialled(pick(), draw)

    def bare_phone() -> str:
        while True:
            number = phone()
            if language != "es" or number.startswith(("+", "0")):
                return number

    return {
        "email": lambda: draw.choice((pick().email, pick().ascii_company_email, pick().free_email))(),
        "ip": lambda: pick().ipv4() if draw.random() < 0.6 else pick().ipv6(),
        "phone": phone,
        "bare_phone": bare_phone,
        "iban": lambda: _grouped(
            _seeded({"en": "en_GB", "pt": "pt_PT"}.get(language, LOCALES[language][0]), draw).iban(), draw
        ),
        "national_id": lambda: draw.choice(_IDENTIFIERS[language])(pick(), draw),
        "credit_card": lambda: _card(pick(), draw),
        "secret": lambda: _secret(pick(), draw),
    }


@cache
def _made(locale: str) -> Any:
    return Faker(locale)


def _seeded(locale: str, draw: random.Random) -> Any:
    """One for the next value alone: made once, as that takes much longer than a value, and seeded for each."""
    faker = _made(locale)
    faker.seed_instance(draw.getrandbits(64))
    return faker


def _dialled(faker: Any, draw: random.Random) -> str:
    """A number of Faker's that can be dialled: no area code begins with a zero."""
    while True:
        number = str(faker.phone_number())
        digits = "".join(filter(str.isdigit, number.replace("+49", "").replace("(0)", "0")))
        if not digits.startswith("00") or number.startswith("001-"):
            return number


def _grouped(number: str, draw: random.Random) -> str:
    if draw.random() < 0.5:
        return number
    return " ".join(number[at : at + 4] for at in range(0, len(number), 4))


def _uruguayan_phone(draw: random.Random) -> str:
    mobile, landline = (
        f"09{draw.randint(1, 9)} {draw.randint(100, 999)} {draw.randint(100, 999)}",
        f"2{draw.randint(100, 999)} {draw.randint(1000, 9999)}",
    )
    return draw.choice((mobile, mobile.replace(" ", ""), landline, f"+598 {landline}", f"+598 {mobile[1:]}"))


def _uruguayan_id(faker: Any, draw: random.Random) -> str:
    number = draw.randint(1_000_000, 5_999_999)
    digit = next(digit for digit in range(10) if uy_ci(f"{number}{digit}"))
    written = f"{number:,}".replace(",", ".")
    return draw.choice((f"{written}-{digit}", f"{number}-{digit}"))


def _uruguayan_rut(faker: Any, draw: random.Random) -> str:
    while True:
        number = f"21{draw.randint(1, 999_999):06d}001{draw.randint(0, 9)}"
        if rut.is_valid(number):
            return number


def _spanish(faker: Any, draw: random.Random) -> str:
    number = faker.nif()
    return str(draw.choice((f"{number[:8]}-{number[8]}", f"{number[:2]}.{number[2:5]}.{number[5:8]}-{number[8]}")))


def _german_tax_id(faker: Any, draw: random.Random) -> str:
    while True:
        number = str(draw.randrange(10**10, 10**11))
        if idnr.is_valid(number):
            return draw.choice((number, idnr.format(number)))


def _german_tax_number(faker: Any, draw: random.Random) -> str:
    return f"{draw.randint(10, 99)}/{draw.randint(100, 999)}/{draw.randint(10_000, 99_999)}"


def _german_pension(faker: Any, draw: random.Random) -> str:
    number = faker.rvnr()
    return str(draw.choice((number, f"{number[:2]} {number[2:8]} {number[8]} {number[9:]}")))


def _french(faker: Any, draw: random.Random) -> str:
    number = faker.ssn()
    cuts = (0, 1, 3, 5, 7, 10, 13, 15)
    return str(draw.choice((number, " ".join(number[a:b] for a, b in itertools.pairwise(cuts)))))


def _portuguese(faker: Any, draw: random.Random) -> str:
    while True:
        number = f"2{draw.randrange(10**8):08d}"
        if nif.is_valid(number):
            return number


_IDENTIFIERS: dict[str, tuple[Callable[[Any, random.Random], str], ...]] = {
    "fr": (_french,),
    "de": (_german_tax_id, _german_tax_number, _german_pension),
    "es": (lambda f, d: f.nif(), lambda f, d: f.nie(), _spanish, _uruguayan_id, _uruguayan_rut),
    "en": (lambda f, d: f.ssn(),),
    "pt": (_portuguese, lambda f, d: _seeded("pt_BR", d).cpf()),
}


def _card(faker: Any, draw: random.Random) -> str:
    number = str(faker.credit_card_number())
    assert luhn.is_valid(number)
    return _grouped(number, draw) if len(number) == 16 else number


def _secret(faker: Any, draw: random.Random) -> str:
    letters = string.ascii_letters + string.digits
    token = "".join(draw.choices(letters, k=36))
    part = base64.urlsafe_b64encode(draw.randbytes(24)).decode().rstrip("=")
    return draw.choice(
        (
            str(faker.password(length=draw.randint(10, 16))),
            f"ghp_{token}",
            "AKIA" + "".join(draw.choices(string.ascii_uppercase + "234567", k=16)),
            f"xoxb-{draw.randrange(10**11, 10**12)}-{token[:24]}",
            f"eyJ{part}.eyJ{part}.{part}",
            draw.randbytes(20).hex(),
        )
    )
