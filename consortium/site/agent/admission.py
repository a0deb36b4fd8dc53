"""Judging an offer: everything the server already checked, checked again with the partner's own means."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consortium.domain.codec import to_json
from consortium.domain.data import Dataset
from consortium.domain.decision import ReasonCode
from consortium.domain.ids import is_id, partner_of
from consortium.domain.job import Epoch, JobKind, extends
from consortium.domain.partner import Cotenancy, Site
from consortium.domain.protocol import LegOffer, Voucher
from consortium.errors import ConsortiumError, VerificationError
from consortium.keys.roster import verify_dataset, verify_spec
from consortium.site.documents import Documents
from consortium.site.legs import LegTable, SiteLeg

if TYPE_CHECKING:
    from consortium.policy import Behind


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why the site does not take an offer; `code` as in `LegReport.reason_code`."""

    code: str
    reason: str
    denial: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Judges offers for one site. `judge` changes nothing."""

    site: Site
    code_digest: str
    jobs_dir: Path
    documents: Documents
    table: LegTable

    def judge(self, offer: LegOffer, now_ms: int, unfit: str) -> Refusal | None:
        """Return why the offer is refused, or None to accept. `unfit` says why the site takes nothing at all now."""
        if unfit:
            return Refusal(code="capacity", reason=unfit)
        return (
            self._epoch(offer)
            or self._form(offer)
            or self._code(offer)
            or self._submitter(offer, now_ms)
            or self._inputs(offer, now_ms)
            or self._policy(offer, now_ms)
            or capacity(self.site, self.table.active(), offer)
        )

    def _epoch(self, offer: LegOffer) -> Refusal | None:
        seen, highest = self.table.highest_of(offer.leg), self.table.highest()
        if seen is not None and offer.epoch <= seen:
            return Refusal(code="epoch", reason=f"{offer.leg} was offered with epoch {offer.epoch} after {seen}")
        return fenced(offer.epoch, highest)

    def _form(self, offer: LegOffer) -> Refusal | None:
        spec = offer.spec.spec
        for prefix, given in (("job", offer.job), ("leg", offer.leg), ("att", offer.attempt)):
            if not is_id(given, prefix):  # paths and keys at the site are made of them
                return Refusal(code="signature", reason=f"{given[:80]!r} is no id of the form {prefix}-…")
        strangers = [item.id for item in offer.inputs if item.site != self.site.id or item.id not in spec.inputs]
        if offer.site != self.site.id or self.site.id not in offer.peers:
            return Refusal(code="signature", reason=f"the offer is for {offer.site}, this is {self.site.id}")
        if spec.sites and self.site.id not in spec.sites:
            return Refusal(code="signature", reason=f"the submitter signed for {', '.join(spec.sites)}, not this site")
        uninvited = sorted(set(offer.peers) - set(spec.sites)) if spec.sites else []
        if uninvited:
            return Refusal(code="signature", reason=f"the submitter did not sign for {', '.join(uninvited)} as a peer")
        if strangers:
            return Refusal(code="signature", reason=f"{', '.join(strangers)} is no input of the signed spec here")
        if len({item.id for item in offer.inputs}) < len(offer.inputs):
            return Refusal(code="signature", reason="the offer names an input twice, the submitter signed for it once")
        if sum(offer.nodes.values()) != spec.resources.gpus:
            signed, offered = spec.resources.gpus, sum(offer.nodes.values())
            return Refusal(code="signature", reason=f"the submitter signed for {signed} GPUs, offered are {offered}")
        others = self.table.jobs_of_signature(offer.spec.signature) - {offer.job}
        if others:
            return Refusal(code="signature", reason=f"the same signed spec already came as {', '.join(sorted(others))}")
        known = [one.spec for one in self.table.specs_of_job(offer.job) if one.signature != offer.spec.signature]
        if not all(spec.kind is JobKind.PRETRAIN and extends(spec, earlier) for earlier in known):
            return Refusal(code="signature", reason=f"{offer.job} came before with another signed spec")
        return None

    def _code(self, offer: LegOffer) -> Refusal | None:
        spec = offer.spec.spec
        if spec.code_digest != self.code_digest:
            reason = f"the submitter signed code {spec.code_digest[:19]}…, {self.site.id} has {self.code_digest[:19]}…"
            return Refusal(code="code", reason=reason)
        if not (self.jobs_dir / f"{spec.kind.value}.py").is_file():
            return Refusal(code="code", reason=f"{self.site.id} has no program for {spec.kind.value} jobs")
        return None

    def _submitter(self, offer: LegOffer, now_ms: int) -> Refusal | None:
        try:
            verify_spec(offer.spec, self.documents.rosters(now_ms))
        except ConsortiumError as fault:
            code = "roster" if "roster" in fault.what else "signature"
            return Refusal(code=code, reason=fault.what)
        return None

    def _inputs(self, offer: LegOffer, now_ms: int) -> Refusal | None:
        """Refuse what consent no longer covers, and what the server alone says of an input: rules would rest on it."""
        for item in offer.inputs:
            over = item.consent_over(now_ms)
            if over:
                return Refusal(code=ReasonCode.CONSENT.value, reason=over)
            voucher = offer.vouchers.get(item.id, Voucher())
            try:
                if voucher.leg:
                    self._written_here(item, voucher.leg)
                elif voucher.person:
                    verify_dataset(item, voucher.person, voucher.signature, self.documents.rosters(now_ms))
                else:
                    raise VerificationError("the offer names neither who registered it nor the leg that wrote it")
            except ConsortiumError as fault:
                reason = f"what the offer says of {item.name} ({item.id}) is not borne out: {fault.what[:500]}"
                return Refusal(code="inputs", reason=reason)
        return None

    def _written_here(self, item: Dataset, leg: str) -> None:
        """Raise VerificationError unless a leg here reported the dataset so; its version was the server's to give."""
        reported = [output for run in self.table.of(leg) for output in run.outputs if output.id == item.id]
        if not reported:
            raise VerificationError(f"{self.site.id} has no record of writing it in {leg}")
        differ = min((_differences(said, item) for said in reported), key=len)
        if differ:
            raise VerificationError(f"{self.site.id} wrote it in {leg} with other {', '.join(differ)}")

    def _policy(self, offer: LegOffer, now_ms: int) -> Refusal | None:
        from consortium.policy import requests_for_job, requests_for_model

        try:
            book = self.documents.policy(now_ms)
            others = {peer: self.documents.site(peer, now_ms) for peer in offer.peers if peer != self.site.id}
            behind = self._behind(offer, now_ms)
        except ConsortiumError as fault:
            return Refusal(code="expired", reason=fault.what)
        hosts, spec = {**others, self.site.id: self.site}, offer.spec.spec
        asked = requests_for_job(spec, offer.inputs, hosts)[self.site.id]
        decision = book.decide_all((*asked, *requests_for_model(spec, behind, hosts)))
        if decision.allowed:
            return None
        denial = decision.denials[0]
        where = f"{denial.clause} in {denial.file}:{denial.line}"
        return Refusal(code="policy", reason=f"{denial.message} ({where})", denial=to_json(denial))

    def _behind(self, offer: LegOffer, now_ms: int) -> list[Behind]:
        """Return the own partner's sites behind the model that a job reads.

        This site knows by itself what it took part in, whatever the server says; of the partner's other sites it has
        the server's word. Other partners' rules are not its to apply: the server asks them, and their own sites.
        """
        from consortium.policy import Behind

        mine = {site: set[str]() for site in offer.model_peers if partner_of(site) == self.site.partner}
        name, seen = offer.spec.spec.reads_model, set[str]()
        while name and name not in seen:
            seen.add(name)
            runs = self.table.of_job(name)
            for run in runs:
                mine.setdefault(self.site.id, set()).update(c for item in run.offer.inputs for c in item.categories)
            name = runs[0].offer.spec.spec.reads_model if runs else ""
        sites = {site: self.site if site == self.site.id else self.documents.site(site, now_ms) for site in mine}
        return [Behind(site=sites[site], categories=tuple(sorted(mine[site]))) for site in sorted(mine)]


def _differences(reported: Dataset, offered: Dataset) -> list[str]:
    names = [item.name for item in fields(Dataset) if item.name != "version"]
    return [name for name in names if getattr(reported, name) != getattr(offered, name)]


def fenced(epoch: Epoch, highest: Epoch) -> Refusal | None:
    """Refuse an epoch of a server incarnation older than one already seen here."""
    if epoch.incarnation < highest.incarnation:
        return Refusal(code="epoch", reason=f"epoch {epoch} comes from a server older than {highest}")
    return None


def capacity(site: Site, active: list[SiteLeg], offer: LegOffer) -> Refusal | None:
    """Refuse what does not fit beside the legs that hold GPUs, node by node, or breaks the site's cotenancy."""
    mine = partner_of(offer.spec.spec.account)
    sizes = {node.id: node.gpus for node in site.nodes}
    for node, gpus in sorted(offer.nodes.items()):
        if node not in sizes or gpus < 1:
            return Refusal(code="capacity", reason=f"{site.id} has no node {node} with {gpus} GPUs")
        there = [leg.offer for leg in active if node in leg.offer.nodes]
        free = sizes[node] - sum(other.nodes[node] for other in there)
        if gpus > free:
            return Refusal(code="capacity", reason=f"{node} has {free} of {sizes[node]} GPUs free, offered are {gpus}")
        for other in there:
            theirs = partner_of(other.spec.spec.account)
            apart = site.cotenancy is Cotenancy.EXCLUSIVE or (site.cotenancy is Cotenancy.PARTNER and theirs != mine)
            if apart and other.leg != offer.leg:
                return Refusal(code="capacity", reason=f"{node} runs {other.job} of {theirs}: {site.cotenancy.value}")
    return None
