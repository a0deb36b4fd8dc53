"""Identifiers: a prefix and a time-sortable body, never reused.

The body is 26 characters of Crockford base32: 48 bits of Unix milliseconds, then 80 bits of entropy (the ULID layout,
https://github.com/ulid/spec). Time and entropy are arguments, so ids are as reproducible as their caller wishes.
"""

from __future__ import annotations

import re

PREFIXES = ("job", "arr", "att", "leg", "ds", "art", "rep", "inc", "off", "win")
CONSORTIUM = "consortium"
"""Who is no partner: the signer of the quotas, and the destination that the server and the tracking server are."""
SERVER = "server"
"""The origin of records that is no site."""
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_ID = re.compile(rf"^({'|'.join(PREFIXES)})-[{_ALPHABET}]{{26}}\Z")
_PARTNER = re.compile(r"^[a-z]{2}\Z")
_SITE = re.compile(r"^[a-z]{2}-[0-9]{1,3}\Z")
_ACCOUNT = re.compile(r"^[a-z]{2}(/[a-z0-9][a-z0-9-]{0,30})?\Z")
_NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,62}\Z")


def make_id(prefix: str, unix_ms: int, entropy: bytes) -> str:
    """Return `prefix-` plus a sortable body; `entropy` is 10 random bytes. Ids of one prefix sort by `unix_ms`."""
    if prefix not in PREFIXES:
        raise ValueError(f"unknown id prefix {prefix!r}; one of {', '.join(PREFIXES)}")
    if not 0 <= unix_ms < 1 << 48 or len(entropy) != 10:
        raise ValueError("an id needs Unix milliseconds below 2^48 and 10 bytes of entropy")
    number = unix_ms << 80 | int.from_bytes(entropy, "big")
    return f"{prefix}-" + "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def is_id(text: str, prefix: str | None = None) -> bool:
    """Tell whether `text` is a well-formed id, of `prefix` where one is given."""
    return bool(_ID.match(text)) and (prefix is None or text.startswith(prefix + "-"))


def is_partner(text: str) -> bool:
    """Tell whether `text` has the form of a partner id (ISO 3166 alpha-2, lower case)."""
    return bool(_PARTNER.match(text))


def is_site(text: str) -> bool:
    """Tell whether `text` has the form of a site id (`fr-1`)."""
    return bool(_SITE.match(text))


def is_account(text: str) -> bool:
    """Tell whether `text` has the form of an account (`fr` or `fr/health`)."""
    return bool(_ACCOUNT.match(text))


def is_name(text: str) -> bool:
    """Tell whether `text` may name a dataset, flavor or project."""
    return bool(_NAME.match(text))


def partner_of(account_or_site: str) -> str:
    """Return the partner of an account (`fr/health`), a site (`fr-1`) or a person (`fr/amelie`).

    Empty for what is none of these: `consortium` is not Colombia's, nor `server` Sweden's.
    """
    return account_or_site[:2] if account_or_site[2:3] in ("", "-", "/") else ""
