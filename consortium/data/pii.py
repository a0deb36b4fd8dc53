"""Redaction of personal data: what belongs to a person is replaced by a placeholder that says what stood there.

| rule                 | placeholder     | what, and how sure one must be                                              |
|----------------------|-----------------|-----------------------------------------------------------------------------|
| `redact.secret`      | `[SECRET]`      | private key blocks; tokens by their issuer's prefix (AWS, GitHub, GitLab,   |
|                      |                 | Slack, Google, Stripe, OpenAI, npm, PyPI, Hugging Face), JWT; values of     |
|                      |                 | `password=`, `api_key:`, `contraseña:` and their like that look random      |
| `redact.email`       | `[EMAIL]`       | addresses, also `name (at) host`                                            |
| `redact.iban`        | `[IBAN]`        | modulo 97 and the country's structure (python-stdnum)                       |
| `redact.credit_card` | `[CREDIT_CARD]` | issuer's prefix and length, Luhn's check digit                              |
| `redact.national_id` | `[NATIONAL_ID]` | the table in `pii_identifiers`, with check digits                           |
| `redact.ip`          | `[IP]`          | IPv4 and IPv6; not loopback, masks, versions and section numbers            |
| `redact.phone`       | `[PHONE]`       | `+` or `00` and a possible number; national layouts of the configured states|
|                      |                 | (phonenumbers); any possible number behind a word such as `Tel.`            |

Where spans overlap, a secret wins, then the longer one, then the rule further up. A text is searched again until
nothing is found, because a placeholder is shorter than what it stands for and may bring a word nearer to a number: so a
second run changes nothing. Names are not looked for. Every edit is noted with its kind and its span in the text as it
came; the value is never written anywhere.
"""

from __future__ import annotations

import ipaddress
import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import get_args

from consortium.data import pii_numbers, pii_phones
from consortium.data.documents import Document, Notes
from consortium.data.pii_identifiers import STATES
from consortium.data.pii_numbers import Rules, Span
from consortium.data.pii_suspects import Secrets, in_usual_width, suspects
from consortium.data.tape import batches
from consortium.domain.cleaning import PiiKind
from consortium.errors import ConfigError

KINDS: tuple[PiiKind, ...] = get_args(PiiKind)
"""In order of precedence between equals."""

_LOCAL = re.compile(r"[\w%+-](?:[\w.%+-]{0,62}[\w%+-])?(?![\w.%+-])")  # read from the end, at most 64 characters
_DOMAIN = re.compile(r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}(?:[^\W\d_]{2,24}|xn--[a-z0-9-]{2,59})(?![\w-])")
_EMAIL_CHARS = 64 + 1 + 255
_AT = re.compile(
    r"(?<![\w.%+-])[\w%+-](?:[\w.%+-]{0,62}[\w%+-])? ?[(\[](?:at|arroba)[)\]] ?"
    r"(?:[^\W_][\w-]{0,62} ?(?:\.|[(\[](?:dot|punkt|punto|point)[)\]]) ?){1,4}[^\W\d_]{2,24}(?![\w-])"
)

_COLONS = re.compile(r":[0-9a-fA-F]{0,4}:")
_IPV6 = re.compile(
    r"(?<![\w:.])(?:[0-9a-fA-F]{0,4}:){2,7}(?:(?:[0-9]{1,3}\.){3}[0-9]{1,3}|[0-9a-fA-F]{1,4})?(?!\w|:[0-9a-fA-F:])"
)

_MARKS = ("_", "-----BEGIN", "eyJ", "AKIA", "ASIA", "xox", "xapp-", "AIza", "glpat-", "sk-", "pypi-", "SG.", "ya29.")
_TOKEN = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?:[A-Za-z0-9+/=:,.()\\\s-]{0,16384}?"
    r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|(?:(?:\s|\\n){0,4}[A-Za-z0-9+/=]{16,128})+)"
    r"|(?<![A-Za-z0-9_])(?:"
    r"(?:AKIA|ASIA|AGPA|AIDA|AROA|ABIA|ACCA)[A-Z2-7]{16}(?![A-Za-z0-9])"
    r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}|glpat-[A-Za-z0-9_-]{20,64}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,250}|xapp-[A-Za-z0-9-]{10,250}"
    r"|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,512}"
    r"|[sr]k_(?:live|test)_[A-Za-z0-9]{16,255}|sk-(?:[A-Za-z]{2,8}-)?(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{20,255}"
    r"|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{32,512}|hf_[A-Za-z0-9]{30,64}|dop_v1_[a-f0-9]{64}"
    r"|SG\.[A-Za-z0-9_-]{16,64}\.[A-Za-z0-9_-]{16,64}"
    r"|eyJ[A-Za-z0-9_-]{8,4096}\.[A-Za-z0-9_-]{4,8192}(?:\.[A-Za-z0-9_-]{0,1024})?"
    r")(?![A-Za-z0-9_])"
)
_CHOSEN = ("pass", "pwd", "mdp", "contrase", "kennwort", "senha")
_WORDS = (*_CHOSEN, "secret", "token", "credential", "clave", "key", "bearer")
"""What `_ASSIGNED` begins with, in lower case; the first may be assigned to by a verb, the others by a sign."""
_ASSIGNED = re.compile(
    r"(?:(?P<chosen>pass(?:word|wd|wort|phrase|e)?|pwd|mdp|contrase(?:ñ|n)a|kennwort|senha)"
    r"|secret|token|credentials?|clave|key|(?P<bearer>bearer\s))(?(bearer)|[\"']?"
    r"(?:\s{0,3}(?:=>|:=|==?|:)\s{0,3}|\s(?:is|est|es|ist|lautet|é)\s(?::\s)?)(?:(?:bearer|basic|token)\s)?)"
    r"(?P<quote>[\"'`«“]?)\s?(?=[^\s\"'`<>\[\]«»“”]{6})",
    re.IGNORECASE,
)
_VALUE_ENDS = re.compile(r"[\s\"'`<>\[\]«»“”]|$")
_VALUE_CHARS = 2048
"""What is assigned begins where `_ASSIGNED` ends, and is at most this long."""
_SECRETS = Secrets(_MARKS, _WORDS, _ASSIGNED)
_URL_PASSWORD = re.compile(r"[a-z][a-z0-9+.-]{1,20}://[^\s/:@\[\]<>{}]{1,64}:([^\s/@\[\]<>{}]{3,128})@")
_EXAMPLES = frozenset({"password", "passwd", "pass", "pwd", "guest", "secret", "token", "user"})
_REFERENCE = re.compile(r"[$%]\{|[$%]\(|\{\{|\$[A-Z_]+$|%[A-Z_]+%|\.{3}|https?:|[a-z_][a-z_.]{3,}\(")
"""A value that stands elsewhere: `${TOKEN}`, `%(token)s`, `$TOKEN`, `getenv(...)`."""
_CODE = re.compile(r"[^,;{}]*+[,;{}]|=|[a-z_]\w*(?:\.[A-Za-z_]\w*)+$|[A-Za-z_$][\w.$]*\.\w+\(|[a-z_$]{3,}\(")
"""An unquoted value that is a piece of a program: `a.b(c`, `x,y:z`."""
_NAME = re.compile(r"[\w.$-]+")
_MIN_ENTROPY_BITS = 2.5
"""Of a value's characters: below it (`aaaa1111`, `xxxxxxxx1`) a value is an example, not a secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PiiConfig:
    """What to redact, and whose identifiers and telephone layouts to know (ISO 3166 alpha-2, lower case)."""

    kinds: tuple[PiiKind, ...] = KINDS
    states: tuple[str, ...] = STATES

    def __post_init__(self) -> None:
        for where, given, known in (("kinds", self.kinds, KINDS), ("states", self.states, STATES)):
            unknown = sorted(set(given) - set(known))
            if unknown:
                raise ConfigError(
                    f"nothing is known about {', '.join(unknown)}",
                    where=where,
                    fix=f"one or more of {', '.join(known)}",
                )


def step(config: PiiConfig) -> Callable[[Iterable[Document], Notes], Iterator[Document]]:
    """Replace personal data in documents by typed placeholders.

    Some layouts of telephone numbers count only in a document's own language: where a step finds out the language, this
    one belongs behind it, so that a second run looks at the same.
    """

    def run(documents: Iterable[Document], notes: Notes) -> Iterator[Document]:
        rules = _rules(config)
        searches: dict[str, _Search] = {}
        for batch in batches(documents):
            for code in {document.language for document in batch}.difference(searches):
                searches[code] = _Search(rules, code)
            phones = {code: search.phones for code, search in searches.items()}
            for at in suspects(batch, rules, phones, _SECRETS):
                document = batch[at]
                text, edits = searches[document.language].redact(document.text)
                for kind, start, end in edits:
                    notes.edit(document, f"redact.{kind}", placeholder(kind), start, end)
                if edits:
                    batch[at] = document.edited(text)
            yield from batch

    return run


def placeholder(kind: str) -> str:
    """Return what stands in a text for something of `kind`."""
    return f"[{kind.upper()}]"


def redact(text: str, config: PiiConfig, language: str = "") -> tuple[str, list[Span]]:
    """Return the text with placeholders, and what was replaced: its kind and place in `text`, in order.

    `language` (ISO 639-1) says which national layouts of telephone numbers may stand without a word before them.
    """
    return _Search(_rules(config), language).redact(text)


class _Search:
    """The rules for texts of one language."""

    __slots__ = ("phones", "rules")

    def __init__(self, rules: Rules, language: str) -> None:
        self.rules = rules
        in_run = partial(pii_phones.in_run, regions=rules.regions, language=language)
        self.phones = in_run if "phone" in rules.kinds else None

    def redact(self, text: str) -> tuple[str, list[Span]]:
        found = self.find(text)
        if not found:
            return text, []
        pieces = [Span("", 0, len(text))]  # of the original: kind "" is text that still stands, else a placeholder
        redacted = text
        while found:
            before, pieces = len(pieces), _cut(pieces, found)
            if len(pieces) == before:  # a finding in a placeholder: no pattern allows it, and a job must never hang
                break
            redacted = "".join(text[start:end] if not kind else placeholder(kind) for kind, start, end in pieces)
            found = self.find(redacted)
        return redacted, [piece for piece in pieces if piece.kind]

    def find(self, text: str) -> list[Span]:
        text = in_usual_width(text)
        kinds = self.rules.kinds
        found = pii_numbers.find(text, self.rules, self.phones)
        if self.phones and "+" in text:
            found += pii_phones.with_plus(text)
        if "email" in kinds:
            found += _emails(text)
        if "ip" in kinds and _COLONS.search(text):
            found += _ipv6(text)
        if "secret" in kinds:
            found += _secrets(text)
        return found if len(found) < 2 else _without_overlaps(found)


def _without_overlaps(found: list[Span]) -> list[Span]:
    """Return spans in order; of those that overlap, the ones that come first by precedence."""
    kept: list[Span] = []
    cluster: list[Span] = []
    reach = 0
    for span in [*sorted(found, key=lambda span: span.start), None]:
        if span is None or span.start >= reach:
            chosen: list[Span] = []
            for candidate in sorted(cluster, key=_precedence):
                at = bisect_left(chosen, candidate.start, key=lambda span: span.start)
                apart = at == len(chosen) or candidate.end <= chosen[at].start
                if apart and (not at or chosen[at - 1].end <= candidate.start):
                    chosen.insert(at, candidate)
            kept += chosen
            cluster = []
        if span is not None:
            cluster.append(span)
            reach = max(reach, span.end)
    return kept


def _precedence(span: Span) -> tuple[bool, int, int, int]:
    return span.kind != "secret", span.start - span.end, KINDS.index(span.kind), span.start


@lru_cache(maxsize=16)
def _rules(config: PiiConfig) -> Rules:
    return pii_numbers.rules(frozenset(config.kinds), tuple(sorted(set(config.states))))


def _cut(pieces: list[Span], found: list[Span]) -> list[Span]:
    """Cut what was found in the redacted text out of the pieces it was made of. No finding touches a placeholder."""
    result: list[Span] = []
    waiting = iter(found)
    next_found = next(waiting, None)
    at = 0  # in the redacted text
    for kind, start, end in pieces:
        width = len(placeholder(kind)) if kind else end - start
        while next_found and not kind and next_found.end <= at + width:
            cut_start, cut_end = start + next_found.start - at, start + next_found.end - at
            result += [Span("", start, cut_start), Span(next_found.kind, cut_start, cut_end)]
            at, width, start = next_found.end, end - cut_end, cut_end
            next_found = next(waiting, None)
        result.append(Span(kind, start, end))
        at += width
    return result


def _emails(text: str) -> Iterator[Span]:
    at = text.find("@")
    while at >= 0:
        local = _LOCAL.match(text[max(0, at - _EMAIL_CHARS) : at][::-1])
        domain = _DOMAIN.match(text, at + 1) if local else None
        if local and domain:
            yield Span("email", at - local.end(), domain.end())
        at = text.find("@", at + 1)
    if "(at)" in text or "[at]" in text or "(arroba)" in text:
        yield from (Span("email", *match.span()) for match in _AT.finditer(text))


def _ipv6(text: str) -> Iterator[Span]:
    for match in _IPV6.finditer(text):
        written = match.group()
        groups = [group for group in written.split(":") if group]
        long_enough = any(len(group) >= 3 for group in groups) and any(map(str.isdigit, written))
        if len(groups) < 2 or not long_enough:
            continue  # std::a, 12:30:45
        try:
            address = ipaddress.IPv6Address(written)
        except ValueError:
            continue
        if not (address.is_loopback or address.is_unspecified):
            yield Span("ip", *match.span())


def _secrets(text: str) -> Iterator[Span]:
    for mark in _MARKS:
        if mark in text:
            yield from (Span("secret", *match.span()) for match in _TOKEN.finditer(text))
            break
    if "://" in text and "@" in text:
        yield from (Span("secret", *m.span(1)) for m in _URL_PASSWORD.finditer(text) if m[1].lower() not in _EXAMPLES)
    lower = text.lower()
    if len(lower) != len(text):  # a few letters grow: then character by character
        lower = "".join(char.lower()[0] for char in text)
    for word in _WORDS if ":" in text or "=" in text else (*_CHOSEN, "bearer"):
        at = lower.find(word)
        first = ends = 0
        while at >= 0:
            match = _ASSIGNED.match(text, at)
            if match:
                begins = match.end()
                if not first <= begins < ends and (end := _VALUE_ENDS.search(text, begins)):
                    first, ends = begins, end.start()
                value = text[begins : min(ends, begins + _VALUE_CHARS)]
                if not match["quote"]:
                    value = value.rstrip(".,;:")
                    value = value if "(" in value else value.rstrip(").,;:")
                    if _CODE.match(value):
                        value = ""
                if _is_random(value, bool(match["chosen"]), 20 if match["bearer"] else 8):
                    yield Span("secret", begins, begins + len(value))
            at = lower.find(word, at + 1)


def _is_random(value: str, chosen: bool, min_chars: int) -> bool:
    """Tell whether a value looks chosen by chance: several kinds of characters, not a word, not a reference.

    What a person chose (`chosen`) may be shorter, and without digits or without letters.
    """
    if len(value) < (6 if chosen else min_chars) or _REFERENCE.match(value) or not value.isascii():
        return False
    digits, named = sum(map(value.count, "0123456789")), _NAME.fullmatch(value)
    if chosen:
        mixed = len(set(value)) >= 5 and (digits > 0 or not named)
    else:
        mixed = any(map(str.isalpha, value)) and (digits > 1 or (digits > 0 and not named))
    return mixed and entropy_bits(value) >= _MIN_ENTROPY_BITS


def entropy_bits(value: str) -> float:
    """Return Shannon's entropy of the value's characters, in bits per character."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())
