"""Sample collections with a known truth, for the demo without corpora and for tests that count.

Sentences in the manner of statutes, from templates of each language filled by Faker (names, towns, companies). The same
language, size and seed give the same bytes under one version of Faker.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consortium.errors import UsageError

_LOCALES = {"fr": "fr_FR", "de": "de_DE", "es": "es_ES"}
LANGUAGES = tuple(_LOCALES)

_TEMPLATES: dict[str, tuple[str, ...]] = {
    "fr": (
        "Le préfet du département peut, après avis de la commission, autoriser la société {company} à exploiter les "
        "installations situées à {city} pour une durée de {n} ans.",
        "Les dispositions du présent article sont applicables aux demandes déposées auprès de la mairie de {city} "
        "avant le {n} du mois.",
        "Lorsque le montant de la redevance excède {n} euros, le redevable peut demander un échelonnement de sa dette.",
        "La décision est notifiée à {name} dans un délai de {n} jours à compter de la date de réception du dossier.",
        "Un décret en Conseil d'Etat fixe les conditions dans lesquelles les agents sont habilités à constater ces "
        "infractions.",
    ),
    "de": (
        "Die zuständige Behörde kann der Firma {company} nach Anhörung der Gemeinde {city} eine Genehmigung für die "
        "Dauer von {n} Jahren erteilen.",
        "Die Vorschriften dieses Gesetzes gelten auch für Anträge, die vor dem Inkrafttreten bei der Stadt {city} "
        "gestellt worden sind.",
        "Übersteigt der Betrag der Gebühr {n} Euro, so kann auf Antrag des Schuldners eine Ratenzahlung "
        "bewilligt werden.",
        "Die Entscheidung ist {name} innerhalb einer Frist von {n} Tagen nach Eingang der Unterlagen schriftlich "
        "mitzuteilen.",
        "Das Nähere über die Voraussetzungen und das Verfahren wird durch Rechtsverordnung des Bundesministeriums "
        "geregelt.",
    ),
    "es": (
        "El Poder Ejecutivo podrá autorizar a la empresa {company} a explotar las instalaciones situadas en {city} "
        "por un plazo de {n} años.",
        "Las disposiciones de la presente ley se aplicarán también a las solicitudes presentadas ante la intendencia "
        "de {city}.",
        "Cuando el importe de la tasa sea superior a {n} pesos, el contribuyente podrá solicitar el pago en cuotas.",
        "La resolución será notificada a {name} en el plazo de {n} días contados desde la recepción del expediente.",
        "La reglamentación determinará las condiciones en que los funcionarios podrán comprobar las infracciones "
        "previstas en esta ley.",
    ),
}
_CONTACT = {
    "fr": "Les observations sont adressées à {email} avant la clôture.",
    "de": "Stellungnahmen sind bis zum Ablauf der Frist an {email} zu richten.",
    "es": "Las observaciones se enviarán a {email} antes del cierre.",
}
_HEADING = {"fr": "Article {n}", "de": "Paragraph {n}", "es": "Artículo {n}"}
_JUNK = ("* * *", "---", "(…)", "p. 7", "[1]", "§ 3", "...")


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What a sample holds, document by document, in the order of the rules that remove them."""

    documents: int
    junk: int
    """Shorter than 40 characters."""
    wrong_language: int
    duplicates: int
    """Equal to an earlier document but for case and white space."""
    emails: int
    """E-mail addresses over all documents, those of duplicates and of other languages included."""

    @property
    def clean(self) -> int:
        """Documents that cleaning with the standard rules keeps."""
        return self.documents - self.junk - self.wrong_language - self.duplicates


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Rows as JSON objects, and the truth about them."""

    rows: tuple[Mapping[str, str], ...]
    truth: Truth

    def write(self, path: str | Path) -> Path:
        """Write the rows as JSONL and return the path."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(dict(row), ensure_ascii=False, sort_keys=True) + "\n" for row in self.rows)
        target.write_text("".join(lines), encoding="utf-8")
        return target


def generate(language: str, documents: int = 2_000, seed: int = 0) -> Sample:
    """Return a sample of `documents` rows: 5% junk, 5% in another language, 10% duplicates, e-mails in about a tenth.

    Raises UsageError for a language without templates or fewer than 20 documents.
    """
    if language not in _LOCALES:
        raise UsageError(f"no sample can be made in {language!r}", fix=f"one of {', '.join(LANGUAGES)}")
    if documents < 20:
        raise UsageError(f"a sample needs at least 20 documents, not {documents}")
    junk, wrong, copies = documents // 20, documents // 20, documents // 10
    draw = random.Random(f"{language}/{documents}/{seed}")  # noqa: S311  sample text, not a secret
    others = [other for other in LANGUAGES if other != language]
    writers = {name: _writer(name, draw) for name in LANGUAGES}
    originals = [writers[language](number) for number in range(documents - junk - wrong - copies)]
    texts = originals + [writers[others[i % len(others)]](documents + i) for i in range(wrong)]
    texts += [_JUNK[i % len(_JUNK)] + f" {i}" for i in range(junk)]
    draw.shuffle(texts)
    for original in draw.sample(originals, copies):
        texts.insert(draw.randint(texts.index(original) + 1, len(texts)), _disguised(original, draw))
    rows = tuple(
        {"id": f"{language}-{number:06d}", "text": text, "language": language, "licence": "sample", "source": "faker"}
        for number, text in enumerate(texts)
    )
    emails = sum(text.count("@") for text in texts)
    return Sample(
        rows=rows,
        truth=Truth(documents=documents, junk=junk, wrong_language=wrong, duplicates=copies, emails=emails),
    )


def _writer(language: str, draw: random.Random) -> Callable[[int], str]:
    """Return a function from a number to a text that no other number gives."""
    from faker import Faker

    faker: Any = Faker(_LOCALES[language], use_weighting=False)
    faker.seed_instance(draw.getrandbits(64))

    def write(number: int) -> str:
        sentences = [
            template.format(company=faker.company(), city=faker.city(), name=faker.name(), n=draw.randint(2, 900))
            for template in draw.choices(_TEMPLATES[language], k=draw.randint(2, 7))
        ]
        if draw.random() < 0.1:
            sentences.append(_CONTACT[language].format(email=faker.ascii_safe_email()))
        return f"## {_HEADING[language].format(n=number)}\n\n" + " ".join(sentences)

    return write


def _disguised(text: str, draw: random.Random) -> str:
    """Return a copy that differs in case and white space only."""
    return draw.choice((str, str.upper, lambda copy: copy.replace(" ", "  "), lambda copy: f"{copy}\n"))(text)
