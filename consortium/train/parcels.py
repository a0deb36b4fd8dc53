"""Large bytes over a border: cut into parts that a gateway takes, put together and checked by the whole's digest.

A gateway takes at most a GiB at once (`consortium.site.gateway.border`); the state of a billion parameters has four.
What fits into one part crosses as one artifact, named and hashed as it always was. A larger one crosses as several,
named `NAME.DIGEST.I.N`: the first 16 hex digits of the whole's SHA-256, the part's number from 1, and how many there
are. Who sent the parts does not matter, as the whole's digest is what was committed or agreed on: a peer may pass on
what a sender withheld from somebody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import BinaryIO

from consortium.domain.data import Artifact, ArtifactClass
from consortium.errors import ConsortiumError, NotFoundError, UnreachableError, VerificationError
from consortium.keys.canonical import digest as digest_of
from consortium.train.exchange import Exchange

PART_BYTES = 1 << 28
_SEALED_BYTES = 1 << 20
"""More than sealing adds to a part."""
_READ_BYTES = 1 << 18


def send(
    exchange: Exchange,
    artifact_class: ArtifactClass,
    name: str,
    data: bytes,
    *,
    round: int = 0,
    recipients: Iterable[str] | None = None,
    part_bytes: int = PART_BYTES,
) -> None:
    """Release `data` to other sites, by default to all peers. Sending it again changes nothing."""
    to = None if recipients is None else sorted(recipients)
    if len(data) <= part_bytes:
        exchange.send(artifact_class, name, data, round=round, recipients=to)
        return
    whole, count = _short(digest_of(data)), -(-len(data) // part_bytes)
    for number in range(1, count + 1):
        part = data[(number - 1) * part_bytes : number * part_bytes]
        exchange.send(artifact_class, f"{name}.{whole}.{number}.{count}", part, round=round, recipients=to)


def fetch(
    exchange: Exchange, artifact_class: ArtifactClass, digest: str, *, round: int, first: str, most_bytes: int
) -> bytes:
    """Return the bytes with this digest, of at most `most_bytes`. Raises what `fetch_into` raises."""
    file = BytesIO()
    fetch_into(exchange, file, artifact_class, digest, round=round, first=first, most_bytes=most_bytes)
    return file.getvalue()


def fetch_into(
    exchange: Exchange,
    file: BinaryIO,
    artifact_class: ArtifactClass,
    digest: str,
    *,
    round: int,
    first: str,
    most_bytes: int,
) -> None:
    """Write the bytes with this digest, of at most `most_bytes`, to an empty file as they come in.

    They are from `first` or else from whoever announced them.

    Raises NotFoundError where nobody announced them to this site, UnreachableError where a sender's store does not
    answer, and VerificationError where all that could be had is something else; what is in the file is worth nothing
    then.
    """
    faults: list[ConsortiumError] = []
    for parts in offers(exchange.inbox(round), artifact_class, digest, round, first, most_bytes=most_bytes):
        if sum(part.size_bytes for part in parts) > most_bytes + len(parts) * _SEALED_BYTES:
            faults.append(_too_long(parts[0], most_bytes))
            continue
        try:
            _pour(exchange, file, parts, most_bytes)
        except ConsortiumError as fault:
            faults.append(fault)
            continue
        if _digest_of(file) == digest:
            return
        faults.append(VerificationError(f"what {parts[0].sender} sent does not hash to {digest}"))
    if not faults:
        raise NotFoundError(f"nothing with digest {digest} is announced to this site", where=f"round {round}")
    away = next((fault for fault in faults if isinstance(fault, UnreachableError)), None)
    if away is not None:
        raise away
    # A peer's own policy, or a malformed name, must not end this leg: it is the sender's fault, whatever it is.
    raise VerificationError(f"{digest} cannot be had: {faults[0].what}", where=f"round {round}") from faults[0]


def _pour(exchange: Exchange, file: BinaryIO, parts: Iterable[Artifact], most_bytes: int) -> None:
    """Write the parts to the file, in place of what was in it, and no part after what is too long."""
    file.seek(0)
    file.truncate()
    written = 0
    for part in parts:
        written += exchange.receive_into(part, file)
        if written > most_bytes:
            raise _too_long(part, most_bytes)


def _digest_of(file: BinaryIO) -> str:
    found = hashlib.sha256()
    file.seek(0)
    while piece := file.read(_READ_BYTES):
        found.update(piece)
    return "sha256:" + found.hexdigest()


def _too_long(part: Artifact, most_bytes: int) -> VerificationError:
    return VerificationError(f"{part.sender} sends more than the {most_bytes} bytes it can be")


def offers(
    inbox: Iterable[Artifact],
    artifact_class: ArtifactClass,
    digest: str,
    round: int,
    first: str = "",
    *,
    most_bytes: int,
) -> Iterator[list[Artifact]]:
    """Yield what is announced of the bytes, one offer of each sender, `first`'s first: an artifact, or all parts.

    Of several that a sender makes, the one of the fewest parts; of several parts with one number the latest. What is
    cut into more parts than `most_bytes` take is no offer.
    """
    most_parts = max(1, -(-most_bytes // PART_BYTES))
    by_sender: dict[str, dict[tuple[int, int], Artifact]] = {}
    for artifact in inbox:
        if (artifact.artifact_class, artifact.round) != (artifact_class, round):
            continue
        place = (1, 1) if artifact.digest == digest else _place(artifact.name, digest)
        if place is not None and place[1] <= most_parts:
            by_sender.setdefault(artifact.sender, {})[place] = artifact
    for sender in sorted(by_sender, key=lambda one: (one != first, one)):
        found = by_sender[sender]
        for count in sorted({count for _, count in found}):
            # Not more numbers than parts that are there: nothing is counted up to on a sender's word.
            if sum(of == count for _, of in found) == count:
                yield [found[number, count] for number in range(1, count + 1)]
                break


def wholes(announced: Iterable[tuple[str, str, str]], digests: Iterable[str]) -> dict[tuple[str, str], str]:
    """Return which of the bytes with these digests a part is of, by its sender and its own digest.

    `announced` are senders, names and digests of artifacts; who sends a part of something names it, and signs the name.
    """
    by_short = {_short(digest): digest for digest in digests}
    found = {}
    for sender, name, part in announced:
        place = _part(name)
        if place is not None and place[0] in by_short:
            found[sender, part] = by_short[place[0]]
    return found


def _place(name: str, digest: str) -> tuple[int, int] | None:
    """Return the number of a part and of all parts of these bytes; None for the name of something else."""
    short, *place = _part(name) or ("", 0, 0)
    return (place[0], place[1]) if short == _short(digest) else None


def _part(name: str) -> tuple[str, int, int] | None:
    """Return the whole's digest in short, the number of a part and of all; None for the name of no part."""
    *_, short, number, count = ["", "", "", *name.split(".")]
    if not (short and _is_number(number) and _is_number(count)) or int(number) > int(count):
        return None
    return short, int(number), int(count)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 6 and text[0] != "0"


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:16]
