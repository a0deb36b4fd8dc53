"""Rosters: which people a partner vouches for, with their keys and roles."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import yaml

from consortium.domain.codec import from_json
from consortium.domain.data import Dataset
from consortium.domain.ids import partner_of
from consortium.domain.job import JobSpec, SignedSpec
from consortium.domain.partner import Person, Role
from consortium.domain.training import Ruling
from consortium.errors import ConfigError, NotFoundError, UsageError, VerificationError
from consortium.keys.canonical import canonical
from consortium.keys.documents import DocumentKind, SignedDocument
from consortium.keys.signing import verify, verify_value


class _Plain(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not allowed", problem_mark=self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Roster:
    """The people of one partner. The document's text is YAML (or JSON) with these keys: `partner`, `people`."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    partner: str
    people: tuple[Person, ...]

    @classmethod
    def parse(cls, document: SignedDocument) -> Roster:
        """Return the roster in a (verified) document. Raises ConfigError naming the file and the offending key.

        It is another state's text: neither aliases, which can make a short one endless, nor any error of the parser
        pass.
        """
        if document.kind is not DocumentKind.ROSTER:
            raise ConfigError(f"a {document.kind} document is no roster", where=document.file)
        try:
            data = yaml.load(document.text, _Plain)  # noqa: S506  a safe one
            roster = from_json(cls, data, where=document.file)
        except yaml.MarkedYAMLError as fault:
            line = fault.problem_mark.line + 1 if fault.problem_mark else 1
            raise ConfigError(f"not valid YAML: {fault.problem}", where=f"{document.file}:{line}") from fault
        except yaml.YAMLError as fault:
            raise ConfigError(f"not valid YAML: {fault}", where=document.file) from fault
        except UsageError as fault:
            raise ConfigError(fault.what, where=document.file) from fault
        except (ValueError, RecursionError) as fault:  # a date that no calendar has, endless digits or nesting
            raise ConfigError(f"not a roster: {fault}", where=document.file) from fault
        if roster.partner != document.partner:
            raise ConfigError(f"a roster of {roster.partner} signed by {document.partner}", where=document.file)
        named: set[str] = set()
        for person in roster.people:
            if not person.id.startswith(f"{roster.partner}/"):
                raise ConfigError(f"{person.id} is not {roster.partner}'s to vouch for", where=document.file)
            if person.id in named:
                raise ConfigError(f"{person.id} stands in the roster twice", where=document.file)
            named.add(person.id)
        return roster


class Rosters:
    """The rosters of all partners together."""

    def __init__(self, people: dict[str, Person]) -> None:
        self._people = people

    @classmethod
    def of(cls, rosters: Iterable[Roster]) -> Rosters:
        """Join rosters; raises ConfigError for a person listed twice."""
        people: dict[str, Person] = {}
        for roster in rosters:
            for person in roster.people:
                if person.id in people:
                    raise ConfigError(f"{person.id} stands in the rosters twice", where=f"roster of {roster.partner}")
                people[person.id] = person
        return cls(people)

    @property
    def people(self) -> tuple[Person, ...]:
        """Everybody, by id."""
        return tuple(self._people[key] for key in sorted(self._people))

    def person(self, person_id: str) -> Person:
        """Return a person; raises NotFoundError naming those of the same partner."""
        if person_id not in self._people:
            known = [p for p in sorted(self._people) if partner_of(p) == partner_of(person_id)]
            raise NotFoundError(
                f"{person_id!r} is in no partner's roster",
                fix=f"{partner_of(person_id)}'s roster has {', '.join(known)}" if known else "ask the partner's admin",
            )
        return self._people[person_id]


def verify_dataset(dataset: Dataset, registrar: str, signature: str, rosters: Rosters) -> Person:
    """Return who registered a dataset after checking that it is of its partner, may register, and signed all of it.

    Raises VerificationError.
    """
    what = f"dataset {dataset.name}"
    try:
        person = rosters.person(registrar)
    except NotFoundError as fault:
        raise VerificationError(fault.what, where=what, fix=fault.fix) from fault
    if partner_of(person.id) != dataset.partner:
        raise VerificationError(f"{person.id} cannot register {dataset.name}, which is {dataset.partner}'s", where=what)
    if not {Role.ENGINEER, Role.ADMIN} & set(person.roles):
        raise VerificationError(f"{person.id} is neither engineer nor admin and may not register data", where=what)
    verify(person.signing_key, canonical(dataset), signature, what=f"{what} by {person.id}")
    return person


def verify_ruling(ruling: Ruling, rosters: Rosters, account: str = "") -> Person:
    """Return who ruled on a site's part in a job after checking that it is an admin and signed it.

    With the job's `account`: that it may. A job's account's partner rules on any site; a site's own partner may take
    its site out, but not let it in again. Raises VerificationError.
    """
    what = f"the ruling on {ruling.site} for round {ruling.round} of {ruling.job}"
    try:
        person = rosters.person(ruling.by)
    except NotFoundError as fault:
        raise VerificationError(fault.what, where=what, fix=fault.fix) from fault
    if Role.ADMIN not in person.roles:
        raise VerificationError(f"{person.id} is no admin and may not rule", where=what)
    own = ruling.action != "readmit" and partner_of(person.id) == partner_of(ruling.site)
    if account and partner_of(person.id) != partner_of(account) and not own:
        raise VerificationError(f"{what} is not {person.id}'s to give: the job is {account}'s", where=what)
    verify_value(person.signing_key, ruling, what=f"{what} by {person.id}")
    return person


def verify_spec(signed: SignedSpec, rosters: Rosters) -> Person:
    """Return the submitter of a job spec after checking that it signed it, may submit, and pays from its own account.

    Raises VerificationError.
    """
    spec = signed.spec
    person = may_submit(spec, rosters)
    verify(person.signing_key, canonical(spec), signed.signature, what=f"job {spec.name} by {person.id}")
    return person


def may_submit(spec: JobSpec, rosters: Rosters) -> Person:
    """Return the submitter of a job spec after checking that it may submit and pays from its own account.

    Whether it signed the spec is not looked at. Raises VerificationError.
    """
    try:
        person = rosters.person(spec.submitter)
    except NotFoundError as fault:
        raise VerificationError(fault.what, where=f"job {spec.name}", fix=fault.fix) from fault
    if not {Role.ENGINEER, Role.ADMIN} & set(person.roles):
        raise VerificationError(f"{person.id} is neither engineer nor admin and may not submit jobs")
    if partner_of(spec.account) != partner_of(person.id):
        raise VerificationError(f"{person.id} may not spend from account {spec.account}, which is not its partner's")
    return person
