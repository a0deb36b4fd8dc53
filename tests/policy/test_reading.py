"""What compiles to Cedar decides as the rules read: the table in docs/configuration.md, written down a second time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.domain.data import NEVER_CROSS, ArtifactClass
from consortium.domain.ids import CONSORTIUM
from consortium.domain.job import JobKind
from consortium.domain.partner import Cotenancy
from consortium.policy import Action, PartnerPolicy, PolicyBook, PolicyRules, Request
from consortium.policy.model import (
    ArtifactRule,
    CategoryRule,
    CotenancyRule,
    EmbargoRule,
    LogRule,
    PurposeRule,
    ResidencyRule,
)

PARTNERS, LANDS = ("fr", "de", "uy"), ("fr", "de", "uy", "se")
PURPOSES, CATEGORIES = ("law", "health", "border"), ("records", "names")
STRICTER = (Cotenancy.OPEN, Cotenancy.PARTNER, Cotenancy.EXCLUSIVE)
CROSSING = tuple(name for name in ArtifactClass if name not in NEVER_CROSS)


def some(values: tuple[Any, ...], least: int = 0) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(st.sampled_from(values), min_size=least, max_size=3, unique=True).map(tuple)


@st.composite
def policies(draw: st.DrawFn, partner: str) -> PartnerPolicy:
    listed = draw(some(tuple(name for name in CROSSING if name is not ArtifactClass.LOG)))
    others = tuple(name for name in PARTNERS if name != partner)
    home = ResidencyRule(classes=NEVER_CROSS, within=(partner,))
    more = st.lists(st.builds(ResidencyRule, classes=some(CROSSING, 1), within=some(LANDS, 1)), max_size=2)
    purpose = st.builds(PurposeRule, allow=some(PURPOSES, 1), kinds=some(tuple(JobKind)))
    category = st.builds(CategoryRule, categories=some(CATEGORIES, 1), purposes=some(PURPOSES))
    embargo = st.builds(EmbargoRule, partners=some(others, 1), actions=some(tuple(Action), 1))
    to = some((*PARTNERS, CONSORTIUM))
    rules = PolicyRules(
        partner=partner,
        version=1,
        residency=(home, *draw(more)),
        purposes=tuple(draw(st.lists(purpose, min_size=1, max_size=3))),
        artifacts=tuple(ArtifactRule(classes=(name,), to=draw(to)) for name in listed),
        logs=(LogRule(to=draw(to)),),
        embargoes=tuple(draw(st.lists(embargo, max_size=1))),
        cotenancy=tuple(draw(st.lists(st.builds(CotenancyRule, at_least=st.sampled_from(Cotenancy)), max_size=1))),
        categories=tuple(draw(st.lists(category, max_size=2))),
    )
    return PartnerPolicy(rules=rules, file=f"{partner}.yaml")


REQUESTS = st.builds(
    Request,
    action=st.sampled_from(Action),
    job_kind=st.sampled_from(JobKind).map(str),
    purpose=st.sampled_from((*PURPOSES, "other", "")),
    submitter_partner=st.sampled_from(PARTNERS),
    host_site=st.just("fr-1"),
    host_partner=st.sampled_from(PARTNERS),
    host_territory=st.sampled_from(LANDS),
    host_cotenancy=st.sampled_from(Cotenancy).map(str),
    owner=st.sampled_from((*PARTNERS, "")),
    owner_territory=st.sampled_from(LANDS),
    artifact_class=st.sampled_from(ArtifactClass).map(str),
    categories=some(CATEGORIES),
    destination_partner=st.sampled_from((*PARTNERS, CONSORTIUM, "")),
)


def against(policy: PartnerPolicy, asked: Request) -> Iterator[str]:
    """Yield the clauses of one partner that a request breaks."""
    mine, rules, name = policy.partner, policy.rules, asked.artifact_class
    for number, embargo in enumerate(rules.embargoes, start=1):
        parties = {asked.submitter_partner, asked.destination_partner, asked.owner, asked.host_partner}
        if asked.action in embargo.actions and parties & set(embargo.partners):
            yield f"embargoes/{number}"
    if asked.action in (Action.RUN, Action.READ):
        opening = [rule for rule in rules.purposes if not rule.kinds or asked.job_kind in rule.kinds]
        yield from () if opening else ("purposes/default",)
        for number, purpose in enumerate(rules.purposes, start=1):
            if purpose in opening and asked.purpose not in purpose.allow:
                yield f"purposes/{number}"
    if asked.action is Action.READ and asked.owner == mine:
        yield from _reading(rules, asked)
    if asked.action is Action.RELEASE and name != ArtifactClass.LOG:
        listed = {rule.classes[0]: (number, rule) for number, rule in enumerate(rules.artifacts, start=1)}
        if name not in listed:
            yield "artifacts/default"
        elif asked.destination_partner not in (mine, *listed[ArtifactClass(name)][1].to):
            yield f"artifacts/{listed[ArtifactClass(name)][0]}"
    shown = asked.action is Action.LOG or (asked.action is Action.RELEASE and name == ArtifactClass.LOG)
    if shown and asked.destination_partner not in (mine, *rules.logs[0].to):
        yield "logs/1"
    if asked.action in (Action.RELEASE, Action.RECEIVE) and name in NEVER_CROSS:
        yield "text"


def _reading(rules: PolicyRules, asked: Request) -> Iterator[str]:
    abroad = asked.host_territory != asked.owner_territory
    ruled = False
    for number, rule in enumerate(rules.residency, start=1):
        if asked.artifact_class in rule.classes:
            ruled = True
            if asked.host_territory not in rule.within or (abroad and asked.artifact_class in NEVER_CROSS):
                yield f"residency/{number}"
    if abroad and not ruled:
        yield "residency/default"
    for number, apart in enumerate(rules.cotenancy, start=1):
        if STRICTER.index(Cotenancy(asked.host_cotenancy)) < STRICTER.index(apart.at_least):
            yield f"cotenancy/{number}"
    for number, category in enumerate(rules.categories, start=1):
        if set(category.categories) & set(asked.categories) and asked.purpose not in category.purposes:
            yield f"categories/{number}"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_compiles_decides_as_the_rules_read(data: st.DataObject) -> None:
    book = {partner: data.draw(policies(partner)) for partner in PARTNERS}
    compiled = PolicyBook(book)
    for asked in data.draw(st.lists(REQUESTS, min_size=5, max_size=20)):
        touched = {asked.host_partner, asked.host_territory} & set(PARTNERS)
        touched |= set() if asked.action is Action.RECEIVE else {asked.owner} - {""}
        expected = {f"{partner}/{clause}" for partner in touched for clause in against(book[partner], asked)}
        decision = compiled.decide(asked)
        assert {denial.clause for denial in decision.denials} == expected
        assert decision.allowed == (not expected)
