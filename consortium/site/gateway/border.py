"""Artifacts crossing the border: out by way of the egress store, in from a peer's, each passage one signed record.

Order matters for crash honesty. Out: object, then record, then announcement. In: envelope verified, plaintext kept,
then record. What a crash leaves undone is done again; what was recorded is not recorded twice.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

from consortium.domain.codec import from_json, to_json
from consortium.domain.data import NEVER_CROSS, Artifact, ArtifactClass, Crossing, CrossingSide
from consortium.domain.decision import Denial
from consortium.domain.ids import CONSORTIUM, is_site, partner_of
from consortium.domain.records import RecordType
from consortium.errors import (
    AuthError,
    ConsortiumError,
    ForbiddenError,
    NotFoundError,
    PolicyDeniedError,
    UnreachableError,
    UsageError,
    VerificationError,
)
from consortium.keys.canonical import digest
from consortium.keys.signing import sign_value, verify_value
from consortium.policy import Request, log_request, receive_request, release_request
from consortium.site.gateway.core import Gateway
from consortium.site.gateway.forms import is_digest
from consortium.site.legs import SiteLeg
from consortium.storage import envelope

MAX_ARTIFACT_BYTES = 1 << 30
"""Of the plaintext, in either direction."""
MAX_ENVELOPE_BYTES = MAX_ARTIFACT_BYTES + (2 << 20)
log = logging.getLogger(__name__)


class Border:
    """Releases and receipts of one site."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    # -- out ------------------------------------------------------------------------------------------------------

    def release(
        self, leg: SiteLeg, artifact_class: ArtifactClass, name: str, round: int, recipients: list[str], data: bytes
    ) -> Artifact:
        """Let an artifact out to `recipients`, or raise PolicyDeniedError. Repeating a release changes nothing."""
        gateway, offer = self.gateway, leg.offer
        strangers = sorted(set(recipients) - set(offer.peers) | set(recipients) & {offer.site})
        if strangers:
            raise ForbiddenError(f"{', '.join(strangers)} takes no part in {offer.job}, or is this site itself")
        header = envelope.EnvelopeHeader(
            job=offer.job,
            artifact_class=self._crossable(leg, artifact_class),
            name=name,
            round=round,
            sender=offer.site,
            recipients=tuple(sorted(recipients)),
            digest=digest(data),
        )
        key = (offer.attempt, artifact_class.value, name, round, ",".join(header.recipients), header.digest)
        known = gateway.db.read().execute(
            "SELECT artifact FROM releases WHERE json_extract(artifact, '$.job') = ? AND class = ? AND name = ?"
            " AND round = ? AND recipients = ? AND digest = ?",
            (offer.job, *key[1:]),
        )
        row = known.fetchone()
        if row is not None:
            return self._announced(from_json(Artifact, json.loads(row["artifact"]), where="releases"))
        for site in header.recipients:
            self._check_release(leg, artifact_class, site)
        if not header.recipients:
            return _artifact(header, "", 0)
        sealed = envelope.pack(header, data, gateway.trust.sealing_keys(header.recipients), gateway.key)
        stored = gateway.egress.put_addressed(f"jobs/{offer.job}/{artifact_class.value}", sealed, ".env")
        artifact = sign_value(gateway.key, _artifact(header, stored.key, len(sealed)))
        self._record_release(key, artifact)
        return self._announced(artifact)

    def announce(self) -> None:
        """Tell the server of every recorded release it has not heard of; raises UnreachableError where it is away."""
        query = "SELECT artifact FROM releases WHERE told = 'no' ORDER BY rowid"
        for row in self.gateway.db.read().execute(query).fetchall():
            artifact = from_json(Artifact, json.loads(row["artifact"]), where="releases")
            try:
                self._tell(artifact)
            except UnreachableError:
                raise
            except ConsortiumError as fault:
                log.warning("the server refuses %s of %s: %s", artifact.name, artifact.job, fault.what)

    def _announced(self, artifact: Artifact) -> Artifact:
        """Announce one release now, or leave it to `announce` where the server is away. Raises what the server says."""
        try:
            self._tell(artifact)
        except UnreachableError as fault:
            log.info("%s of %s is announced later: %s", artifact.name, artifact.job, fault.what)
        return artifact

    def _tell(self, artifact: Artifact) -> None:
        try:
            self.gateway.call("POST", f"/v1/jobs/{artifact.job}/artifacts", artifact, job=artifact.job)
        except UnreachableError:
            raise
        except ConsortiumError as fault:
            if type(fault) is AuthError:  # the site's token is at fault, not the artifact
                raise UnreachableError(f"the server does not take the site's token: {fault.what}") from fault
            self._mark(artifact, "refused")
            raise
        self._mark(artifact, "yes")

    def _mark(self, artifact: Artifact, told: str) -> None:
        with self.gateway.db.write() as write:
            write.execute("UPDATE releases SET told = ? WHERE object_key = ?", (told, artifact.key))

    def check_log(self, leg: SiteLeg) -> None:
        """Raise PolicyDeniedError where the own policy keeps the leg's log at home."""
        spec, host = leg.offer.spec.spec, self.gateway.site
        for reader in (CONSORTIUM, partner_of(spec.submitter)):
            self._decide(leg, log_request(spec, host, reader), f"log to {reader}")

    def words(self, leg: SiteLeg, message: str) -> str:
        """Return what the consortium may hear of a program's own words: all of them where its log may leave."""
        try:
            self.check_log(leg)
        except PolicyDeniedError:
            return f"the program failed; what it said stays in its log, which {self.gateway.site.id} keeps at home"
        return message

    def check_metrics(self, leg: SiteLeg) -> None:
        """Raise PolicyDeniedError where the own policy keeps metrics at home."""
        self._check_release(leg, ArtifactClass.METRIC, None)

    def _crossable(self, leg: SiteLeg, artifact_class: ArtifactClass) -> ArtifactClass:
        if artifact_class in NEVER_CROSS:
            partner, clause = self.gateway.site.partner, "residency"
            what = f"{artifact_class.value} text never leaves its territory, whatever any policy says"
            denial = Denial(partner=partner, clause=clause, message=what, file="", line=0, would_pass="")
            self._record_refusal(leg, f"{artifact_class.value} to anybody", denial)
            raise PolicyDeniedError(
                what, where=f"the border of {self.gateway.site.id}", fix="send what is derived from it"
            )
        return artifact_class

    def _check_release(self, leg: SiteLeg, artifact_class: ArtifactClass, recipient: str | None) -> None:
        spec, host = leg.offer.spec.spec, self.gateway.site
        there = None if recipient is None else self.gateway.documents.site(recipient, self.gateway.now_ms())
        categories = tuple(sorted({name for item in leg.offer.inputs for name in item.categories}))
        request = release_request(spec, host, artifact_class, there, categories)
        self._decide(leg, request, f"{artifact_class.value} to {recipient or 'consortium'}")

    def _decide(self, leg: SiteLeg, request: Request, what: str) -> None:
        decision = self.gateway.documents.policy(self.gateway.now_ms()).decide(request)
        if decision.allowed:
            return
        denial = decision.denials[0]
        self._record_refusal(leg, what, denial)
        raise PolicyDeniedError(
            denial.message, where=f"{denial.clause} in {denial.file}:{denial.line}", fix=denial.would_pass or None
        )

    def _record_refusal(self, leg: SiteLeg, what: str, denial: Denial) -> None:
        """Record a refused release, once per job and kind of release."""
        with self.gateway.db.write() as write:
            fresh = write.execute("INSERT OR IGNORE INTO refusals VALUES (?, ?)", (leg.offer.job, what)).rowcount
            if fresh:
                body = {"job": leg.offer.job, "leg": leg.offer.leg, "code": "policy", "reason": what, "denial": denial}
                self.gateway.outbox.add(write, RecordType.REFUSAL, body, self.gateway.now_ms())

    def _record_release(self, key: tuple[str, str, str, int, str, str], artifact: Artifact) -> None:
        with self.gateway.db.write() as write:
            fresh = write.execute(
                "INSERT OR IGNORE INTO releases (attempt, class, name, round, recipients, digest, object_key, artifact)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (*key, artifact.key, json.dumps(to_json(artifact))),
            ).rowcount
            if fresh:
                at_ms = self.gateway.now_ms()
                crossings = [_crossing(artifact, site, CrossingSide.RELEASE, at_ms) for site in artifact.recipients]
                self.gateway.outbox.add_crossings(write, crossings, at_ms)

    # -- in -------------------------------------------------------------------------------------------------------

    def inbox(self, leg: SiteLeg, round: int | None = None) -> list[Artifact]:
        """Return the artifacts of the job, or of one round, that are addressed to this site, oldest first."""
        job, site = leg.offer.job, leg.offer.site
        asked = {"recipient": site} | ({} if round is None else {"round": str(round)})
        answer = self.gateway.call("GET", f"/v1/jobs/{job}/artifacts", params=asked, job=job)
        return from_json(list[Artifact], answer, where=f"artifacts of {job}")

    def receive(self, leg: SiteLeg, wanted: str, sender: str, round: int | None = None) -> bytes:
        """Return the plaintext of an announced artifact, fetched and recorded the first time, kept from then on.

        What is kept of rounds before the last one goes: a training has many, and fetches it anew if ever.
        """
        if not is_digest(wanted) or not (sender == "" or is_site(sender)):  # a file is named after them
            raise UsageError(f"no digest, or no site: {wanted[:80]!r} of {sender[:80]!r}", where=leg.offer.job)
        folder = self.gateway.received / leg.offer.job
        kept = (folder / str(round) if round else folder) / f"{sender or 'any'}-{wanted.removeprefix('sha256:')}"
        if self._recorded(leg.offer.job, sender, wanted) and (known := _kept(kept, wanted)) is not None:
            return known
        for artifact in self.inbox(leg, round):
            if artifact.digest == wanted and sender in ("", artifact.sender) and round in (None, artifact.round):
                break
        else:
            raise NotFoundError(f"nothing with digest {wanted} is announced to {leg.offer.site}", where=leg.offer.job)
        data = self._fetch(leg, artifact)
        _keep(kept, data)
        if round:
            _let_go(folder, round - 1)
        with self.gateway.db.write() as write:
            row = (artifact.job, artifact.sender, artifact.digest, artifact.key)
            if write.execute("INSERT OR IGNORE INTO receipts VALUES (?, ?, ?, ?)", row).rowcount:
                at_ms = self.gateway.now_ms()
                crossing = _crossing(artifact, leg.offer.site, CrossingSide.RECEIPT, at_ms)
                self.gateway.outbox.add_crossings(write, [crossing], at_ms)
        return data

    def _recorded(self, job: str, sender: str, digest: str) -> bool:
        """Whether a receipt is on record: a crash may lie between the plaintext and its record."""
        query = "SELECT 1 FROM receipts WHERE job = ? AND digest = ? AND ? IN ('', sender)"
        return self.gateway.db.read().execute(query, (job, digest, sender)).fetchone() is not None

    def _fetch(self, leg: SiteLeg, artifact: Artifact) -> bytes:
        gateway = self.gateway
        if artifact.job != leg.offer.job or artifact.sender not in gateway.peers:
            raise VerificationError(
                f"{artifact.name!r} comes from {artifact.sender}, whose store this site does not know"
            )
        sender_key = gateway.trust.site_key(artifact.sender)
        verify_value(sender_key, artifact, what=f"the artifact {artifact.name!r} of {artifact.sender}")
        there = gateway.documents.site(artifact.sender, gateway.now_ms())
        request = receive_request(leg.offer.spec.spec, gateway.site, artifact.artifact_class, there)
        self._decide(leg, request, f"{artifact.artifact_class.value} from {artifact.sender}")
        if not 0 < artifact.size_bytes <= MAX_ENVELOPE_BYTES:
            raise VerificationError(f"{artifact.name!r} is announced with {artifact.size_bytes} bytes")
        try:
            sealed = gateway.peers[artifact.sender].get(artifact.key, size=artifact.size_bytes)
        except NotFoundError as fault:  # a store may show a new object late
            raise UnreachableError(f"the store of {artifact.sender} does not show {artifact.name!r} yet") from fault
        header, data = envelope.unpack(sealed, site=leg.offer.site, sealing=gateway.sealing, sender_key=sender_key)
        if replace(artifact, signature="") != _artifact(header, artifact.key, len(sealed)):
            raise VerificationError(f"the envelope of {artifact.name!r} is not what {artifact.sender} announced")
        return data


def prune_received(gateway: Gateway) -> None:
    """Delete kept plaintexts of jobs that have no active leg here."""
    active = {leg.offer.job for leg in gateway.table.active()}
    for folder in gateway.received.iterdir():
        if folder.name not in active:
            shutil.rmtree(folder, ignore_errors=True)  # what a late reader holds is deleted next time


def _artifact(header: envelope.EnvelopeHeader, key: str, size_bytes: int) -> Artifact:
    return Artifact(
        job=header.job,
        artifact_class=header.artifact_class,
        name=header.name,
        round=header.round,
        sender=header.sender,
        recipients=header.recipients,
        digest=header.digest,
        key=key,
        size_bytes=size_bytes,
    )


def _crossing(artifact: Artifact, recipient: str, side: CrossingSide, at_ms: int) -> Crossing:
    return Crossing(
        sender=artifact.sender,
        recipient=recipient,
        side=side,
        artifact_class=artifact.artifact_class,
        size_bytes=artifact.size_bytes,
        count=1,
        digest=artifact.digest,
        job=artifact.job,
        at_ms=at_ms,
    )


def _let_go(folder: Path, before: int) -> None:
    """Delete what is kept of rounds `before` this one; what is of no round stays with the job."""
    for path in folder.iterdir():
        if path.is_dir() and path.name.isdecimal() and int(path.name) < before:
            shutil.rmtree(path, ignore_errors=True)


def _kept(path: Path, wanted: str) -> bytes | None:
    """Return what is kept; None where it is gone, or was cut when the machine lost its power."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data if digest(data) == wanted else None


def _keep(path: Path, data: bytes) -> None:
    """Keep a plaintext, whole or not at all. Raises UnreachableError where the disk does not take it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        for folder in (path.parent.parent, path.parent):
            folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(data)
        draft.replace(path)
    except OSError as fault:
        draft.unlink(missing_ok=True)  # the next try must not find still less room
        what = f"what came in cannot be kept: {fault.strerror}"
        raise UnreachableError(what, where=str(path.parent), fix="make room on its disk") from fault
