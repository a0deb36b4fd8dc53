"""The policies of all partners, ready to decide: allowed if and only if every partner concerned allows it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import cedarpy

from consortium.domain.decision import Denial, PolicyDecision
from consortium.domain.ids import CONSORTIUM
from consortium.errors import ConfigError
from consortium.policy.cedar import SCHEMA, Clause, clauses
from consortium.policy.explain import describe
from consortium.policy.model import Action, PartnerPolicy
from consortium.policy.request import Request

_CACHED = 100_000


class _Compiled:
    """One partner's policy set, parsed once and checked against the schema."""

    def __init__(self, policy: PartnerPolicy, schema: Any) -> None:
        self.policy = policy
        self.clauses: dict[str, Clause] = {clause.id: clause for clause in clauses(policy)}
        text = "\n".join(clause.cedar for clause in self.clauses.values())
        checked = cedarpy.validate_policies(text, schema)
        if not checked.validation_passed:
            faults = "; ".join(str(fault) for fault in checked.errors)
            raise ConfigError(f"the policy of {policy.partner} does not compile: {faults}", where=policy.file)
        self.policies = cedarpy.PolicySet.from_str(text)

    def denials(self, request: Request, asked: dict[str, Any], entities: Any) -> tuple[Denial, ...]:
        """Return why this partner denies; empty where it allows."""
        result = cedarpy.is_authorized(asked, self.policies, entities)
        if result.allowed and not result.diagnostics.errors:
            return ()
        named = result.diagnostics.id_annotations_by_reason.values()
        hit = [clause for name, clause in self.clauses.items() if name in named and clause.section != "base"]
        if not hit:
            hit = [self.clauses[f"{self.policy.partner}/base"]]
        return tuple(self._denial(clause, request) for clause in hit)

    def _denial(self, clause: Clause, request: Request) -> Denial:
        message, would_pass = describe(clause, self.policy.partner, request)
        return Denial(
            partner=self.policy.partner,
            clause=clause.id,
            message=message,
            file=self.policy.file,
            line=clause.line,
            would_pass=would_pass,
        )


class PolicyBook:
    """Policies by partner. Decisions are cached per request; make a new book when a policy changes."""

    def __init__(self, policies: dict[str, PartnerPolicy]) -> None:
        schema = cedarpy.Schema.from_str(SCHEMA)
        self._entities = cedarpy.Entities.from_json_str("[]")
        self._compiled = {name: _Compiled(policy, schema) for name, policy in sorted(policies.items())}
        self._cache: dict[Request, PolicyDecision] = {}

    @classmethod
    def of(cls, policies: Iterable[PartnerPolicy]) -> PolicyBook:
        """Return the book of `policies`. Raises ConfigError where a partner has two, or one does not compile."""
        found: dict[str, PartnerPolicy] = {}
        for policy in policies:
            if policy.partner in found:
                raise ConfigError(f"{policy.partner} has two policies", where=policy.file)
            found[policy.partner] = policy
        return cls(found)

    def decide(self, request: Request) -> PolicyDecision:
        """Return the decision of all partners it touches: the owner of what is read or sent, the host, the land.

        A partner without a policy in the book denies.
        """
        known = self._cache.get(request)
        if known is None:
            known = self._decide(request)
            if len(self._cache) >= _CACHED:
                self._cache.clear()
            self._cache[request] = known
        return known

    def decide_all(self, requests: Iterable[Request]) -> PolicyDecision:
        """Return one decision for all requests: allowed where each is, with every distinct denial in order."""
        denials: dict[tuple[str, str], Denial] = {}
        consulted: set[str] = set()
        for request in requests:
            decision = self.decide(request)
            consulted |= set(decision.consulted)
            for denial in decision.denials:
                denials.setdefault((denial.clause, denial.message), denial)
        return PolicyDecision(allowed=not denials, denials=tuple(denials.values()), consulted=tuple(sorted(consulted)))

    def _decide(self, request: Request) -> PolicyDecision:
        touched = {request.host_partner} - {"", CONSORTIUM}
        if request.action is not Action.RECEIVE:  # the sender answers for the release, in a request of its own
            touched |= {request.owner} - {"", CONSORTIUM}
        if request.host_territory in self._compiled:
            touched.add(request.host_territory)
        denials: list[Denial] = []
        if not touched:
            denials.append(_nobody())
        asked = _asked(request)
        for partner in sorted(touched, key=lambda name: (name != request.owner, name)):
            compiled = self._compiled.get(partner)
            denials += compiled.denials(request, asked, self._entities) if compiled else [_missing(partner)]
        return PolicyDecision(allowed=not denials, denials=tuple(denials), consulted=tuple(sorted(touched)))


def _asked(request: Request) -> dict[str, Any]:
    return {
        "principal": {"type": "Partner", "id": request.submitter_partner},
        "action": {"type": "Action", "id": request.action.value},
        "resource": {"type": "Site", "id": request.host_site},
        "context": {
            "job_kind": str(request.job_kind),
            "purpose": request.purpose,
            "account": request.account,
            "host_partner": request.host_partner,
            "host_territory": request.host_territory,
            "host_cotenancy": str(request.host_cotenancy),
            "owner": request.owner,
            "owner_territory": request.owner_territory,
            "artifact_class": str(request.artifact_class),
            "categories": list(request.categories),
            "submitter_partner": request.submitter_partner,
            "destination_partner": request.destination_partner,
            "destination_territory": request.destination_territory,
        },
    }


def _missing(partner: str) -> Denial:
    return Denial(
        partner=partner,
        clause=f"{partner}/base",
        message=f"{partner} has no policy in force, so nothing of it may be used",
        file=f"configs/policy/{partner}.yaml",
        line=1,
        would_pass=f"{partner} must sign and hand over its policy",
    )


def _nobody() -> Denial:
    return Denial(
        partner="",
        clause="base",
        message="the request names neither a host nor an owner, so nobody can allow it",
        file="",
        line=0,
        would_pass="name the site it happens at and the partner whose data it is",  # noqa: S106  no password
    )
