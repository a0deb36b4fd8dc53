"""Say in words what a clause forbids in a request, and what would pass."""

from __future__ import annotations

from collections.abc import Iterable

from consortium.domain.data import ArtifactClass
from consortium.policy.cedar import STRICTNESS, Clause
from consortium.policy.model import Action, LogRule
from consortium.policy.request import Request


def describe(clause: Clause, partner: str, request: Request) -> tuple[str, str]:
    """Return (what the clause forbids here, what would pass)."""
    words = {
        "residency": _residency,
        "embargoes": _embargoes,
        "purposes": _purposes,
        "categories": _categories,
        "cotenancy": _cotenancy,
        "artifacts": _artifacts,
        "logs": _logs,
        "text": _text,
    }.get(clause.section)
    if words is None:
        return f"the request does not concern {partner}", "ask the partner it concerns"
    return words(clause, partner, request)


def _residency(clause: Clause, partner: str, request: Request) -> tuple[str, str]:
    within = clause.rule.within if clause.rule else (request.owner_territory,)
    lands = _or(within)
    return (
        f"{partner}'s {request.artifact_class} data may be read in {lands} only, not in {_at(request)}",
        f"run the job in {lands}: leave `sites` empty and it goes to its data",
    )


def _embargoes(clause: Clause, partner: str, request: Request) -> tuple[str, str]:
    parties = (request.submitter_partner, request.destination_partner, request.owner, request.host_partner)
    hit = _and(name for name in clause.rule.partners if name in parties)
    return f"{partner} has an embargo on {hit} for {request.action.value}", f"leave {hit} or {partner} out of the job"


def _purposes(clause: Clause, partner: str, request: Request) -> tuple[str, str]:
    if clause.rule is None:
        kind = request.job_kind or "unnamed"
        return (
            f"{partner} lists no purpose that its data and sites serve in {kind} jobs",
            f"{partner} would have to list one under `purposes` and sign its policy",
        )
    kinds = f" in {_or(kind.value for kind in clause.rule.kinds)} jobs" if clause.rule.kinds else ""
    given = repr(request.purpose) if request.purpose else "no purpose"
    return (
        f"{partner}'s data and sites serve {_or(clause.rule.allow)}{kinds}, not {given}",
        f"state a purpose that is true and permitted, such as purpose={clause.rule.allow[0]}",
    )


def _categories(clause: Clause, partner: str, request: Request) -> tuple[str, str]:
    hit = _and(name for name in clause.rule.categories if name in request.categories)
    purposes = _or(clause.rule.purposes) or "no purpose at all"
    other = f", or state a true purpose={clause.rule.purposes[0]}" if clause.rule.purposes else ""
    if request.artifact_class == ArtifactClass.OUTER_STATE:
        return (
            f"a model made of {partner}'s data of category {hit} may be used for {purposes} only, "
            f"not for {request.purpose!r}",
            f"choose another model{other}",
        )
    return (
        f"{partner}'s data of category {hit} may be read for {purposes} only, not for {request.purpose!r}",
        f"leave data of category {hit} out{other}",
    )


def _cotenancy(clause: Clause, partner: str, request: Request) -> tuple[str, str]:
    enough = _or(mode.value for mode in STRICTNESS[STRICTNESS.index(clause.rule.at_least) :])
    return (
        f"{partner}'s data need cotenancy {enough}, and {_at(request)} has {request.host_cotenancy}",
        f"use a site with cotenancy {enough}",
    )


def _artifacts(clause: Clause, partner: str, request: Request) -> tuple[str, str]:
    if clause.rule is None:
        return (
            f"{partner} does not list {request.artifact_class} among what may leave {_at(request)}",
            f"{partner} would have to list {request.artifact_class} under `artifacts` and sign its policy",
        )
    to, where = _or(clause.rule.to) or "nobody", request.destination_partner
    return (
        f"{partner} lets {request.artifact_class} leave {_at(request)} for {to} only, not {where!r}",
        f"leave {request.destination_partner} out of the job, or have {partner} add it and sign its policy",
    )


def _logs(clause: Clause, partner: str, request: Request) -> tuple[str, str]:
    rule: LogRule = clause.rule
    readers = _or((partner, *rule.to))
    return (
        f"logs of {_at(request)} may be read by {readers} only, not by {request.destination_partner or 'others'}",
        f"ask somebody of {partner} to read the log at {request.host_site or 'the site'}",
    )


def _text(clause: Clause, partner: str, request: Request) -> tuple[str, str]:
    verb = "leave" if request.action is Action.RELEASE else "enter"
    return (
        f"{request.artifact_class} text may not {verb} {_at(request)}: text never crosses a border",
        "send the code to the data: run the job where the data is",
    )


def _at(request: Request) -> str:
    return f"{request.host_site or request.host_partner} ({request.host_territory})"


def _or(values: Iterable[str]) -> str:
    return _joined(values, "or")


def _and(values: Iterable[str]) -> str:
    return _joined(values, "and")


def _joined(values: Iterable[str], word: str) -> str:
    names = list(dict.fromkeys(str(value) for value in values))
    return f" {word} ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
