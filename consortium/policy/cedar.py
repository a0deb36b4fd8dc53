"""Compile a partner's policy to Cedar: one base permit, and one `forbid … unless` per rule with its clause as `@id`.

The same policy gives the same bytes. Whatever a section does not list is closed by its `default` clause, and text
(`raw`, `clean`) is closed by the `text` clause whatever the rest says.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from consortium.domain.data import NEVER_CROSS, ArtifactClass
from consortium.domain.partner import Cotenancy
from consortium.policy.model import (
    Action,
    ArtifactRule,
    CategoryRule,
    CotenancyRule,
    EmbargoRule,
    LogRule,
    PartnerPolicy,
    PurposeRule,
    ResidencyRule,
)

SCHEMA = """entity Partner;
entity Site;
action run, read, release, receive, log appliesTo {
  principal: [Partner],
  resource: [Site],
  context: {
    job_kind: String, purpose: String, account: String,
    host_partner: String, host_territory: String, host_cotenancy: String,
    owner: String, owner_territory: String, artifact_class: String, categories: Set<String>,
    submitter_partner: String, destination_partner: String, destination_territory: String
  }
};
"""
STRICTNESS = (Cotenancy.OPEN, Cotenancy.PARTNER, Cotenancy.EXCLUSIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clause:
    """One compiled clause: its id, the section and rule it comes from, its line, and its Cedar text."""

    id: str
    section: str
    rule: Any
    line: int
    cedar: str


def clauses(policy: PartnerPolicy) -> tuple[Clause, ...]:
    """Return the clauses of the policy in the order they are evaluated and reported."""
    mine = _touches(policy.partner)
    found = [
        Clause(
            id=f"{policy.partner}/base",
            section="base",
            rule=None,
            line=policy.lines.get("residency", 1),
            cedar=f'@id("{policy.partner}/base")\npermit (principal, action, resource)\nwhen {{ {mine} }};\n',
        )
    ]
    for section, compiled in _SECTIONS.items():
        for number, rule in enumerate(getattr(policy.rules, section), start=1):
            found.append(_clause(policy, section, str(number), rule, compiled(policy.partner, rule)))
        if section in _DEFAULTS and (body := _DEFAULTS[section](policy)) is not None:
            found.append(_clause(policy, section, "default", None, body))
    found.append(
        _clause(policy, "text", "", None, (_actions(Action.RELEASE, Action.RECEIVE), _class_in(NEVER_CROSS), ""))
    )
    return tuple(found)


Body = tuple[str, str, str]
"""The action constraint, the `when` condition and the `unless` condition (empty: none)."""


def _clause(policy: PartnerPolicy, section: str, number: str, rule: Any, body: Body) -> Clause:
    action, when, unless = body
    name = "/".join(part for part in (policy.partner, section, number) if part)
    text = f'@id("{name}")\nforbid (principal, {action}, resource)\nwhen {{ {when} }}'
    text += f"\nunless {{ {unless} }};\n" if unless else ";\n"
    line = policy.lines.get(f"{section}/{number}", policy.lines.get(section, policy.lines.get("residency", 1)))
    return Clause(id=name, section=section, rule=rule, line=line, cedar=text)


def _residency(partner: str, rule: ResidencyRule) -> Body:
    here = _any_of("host_territory", rule.within)
    if any(name in NEVER_CROSS for name in rule.classes):
        here += f" && (context.host_territory == context.owner_territory || !({_class_in(NEVER_CROSS)}))"
    return _actions(Action.READ), f"{_is('owner', partner)} && {_class_in(rule.classes)}", here


def _residency_default(policy: PartnerPolicy) -> Body:
    listed = {name for rule in policy.rules.residency for name in rule.classes}
    when = f"{_is('owner', policy.partner)} && !({_class_in(listed)})"
    return _actions(Action.READ), when, "context.host_territory == context.owner_territory"


def _purposes(partner: str, rule: PurposeRule) -> Body:
    when = _touches(partner)
    if rule.kinds:
        when = f"({when}) && {_any_of('job_kind', rule.kinds)}"
    return _actions(Action.RUN, Action.READ), when, _any_of("purpose", rule.allow)


def _purposes_default(policy: PartnerPolicy) -> Body | None:
    """Close the kinds of jobs that no rule opens; one that names no kinds opens all."""
    if not all(rule.kinds for rule in policy.rules.purposes):
        return None
    kinds = {kind for rule in policy.rules.purposes for kind in rule.kinds}
    return _actions(Action.RUN, Action.READ), _touches(policy.partner), _any_of("job_kind", kinds)


def _embargoes(partner: str, rule: EmbargoRule) -> Body:
    parties = ("submitter_partner", "destination_partner", "owner", "host_partner")
    return _actions(*rule.actions), " || ".join(_any_of(party, rule.partners) for party in parties), ""


def _artifacts(partner: str, rule: ArtifactRule) -> Body:
    when = f"({_touches(partner)}) && {_class_in(rule.classes)}"
    return _actions(Action.RELEASE), when, _any_of("destination_partner", (partner, *rule.to))


def _artifacts_default(policy: PartnerPolicy) -> Body:
    listed = {name for rule in policy.rules.artifacts for name in rule.classes} | {ArtifactClass.LOG}
    return _actions(Action.RELEASE), f"!({_class_in(listed)})", ""


def _logs(partner: str, rule: LogRule) -> Body:
    when = f'({_touches(partner)}) && (action == Action::"log" || {_class_in([ArtifactClass.LOG])})'
    return _actions(Action.LOG, Action.RELEASE), when, _any_of("destination_partner", (partner, *rule.to))


def _cotenancy(partner: str, rule: CotenancyRule) -> Body:
    enough = STRICTNESS[STRICTNESS.index(rule.at_least) :]
    return _actions(Action.READ), _is("owner", partner), _any_of("host_cotenancy", enough)


def _categories(partner: str, rule: CategoryRule) -> Body:
    when = f"{_is('owner', partner)} && context.categories.containsAny({_set(rule.categories)})"
    return _actions(Action.READ), when, _any_of("purpose", rule.purposes) if rule.purposes else ""


_SECTIONS: dict[str, Any] = {
    "residency": _residency,
    "embargoes": _embargoes,
    "purposes": _purposes,
    "categories": _categories,
    "cotenancy": _cotenancy,
    "artifacts": _artifacts,
    "logs": _logs,
}
_DEFAULTS: dict[str, Any] = {
    "residency": _residency_default,
    "purposes": _purposes_default,
    "artifacts": _artifacts_default,
}


def _touches(partner: str) -> str:
    return " || ".join(_is(attribute, partner) for attribute in ("host_partner", "host_territory", "owner"))


def _actions(*actions: Action) -> str:
    names = ", ".join(f'Action::"{action.value}"' for action in sorted(set(actions)))
    return f"action in [{names}]"


def _is(attribute: str, value: str) -> str:
    return f'context.{attribute} == "{value}"'


def _any_of(attribute: str, values: Iterable[str]) -> str:
    return f"{_set(values)}.contains(context.{attribute})" if list(values) else "false"


def _class_in(classes: Iterable[ArtifactClass]) -> str:
    return _any_of("artifact_class", [name.value for name in classes])


def _set(values: Iterable[str]) -> str:
    return "[" + ", ".join(f'"{value}"' for value in sorted({str(v) for v in values})) + "]"
