"""Decisions of the project's own policies and of small ones, with the clause that denies."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from consortium.config import load_federation, parse_policy_text
from consortium.domain.data import NEVER_CROSS, ArtifactClass, Dataset
from consortium.domain.job import JobKind, JobSpec, Resources
from consortium.domain.partner import Cotenancy, Flavor, Node, Site
from consortium.errors import ConfigError
from consortium.policy import (
    Action,
    Behind,
    PolicyBook,
    Request,
    log_request,
    release_request,
    requests_for_job,
    requests_for_model,
)
from consortium.policy.cedar import clauses

FEDERATION = load_federation()
SITES = {site.id: site for site in FEDERATION.sites}
BOOK = PolicyBook.of(FEDERATION.policies)


def spec(kind: JobKind = JobKind.CLEAN, submitter: str = "fr/amelie", purpose: str = "language-model") -> JobSpec:
    return JobSpec(
        kind=kind,
        name="job",
        account=submitter[:2],
        submitter=submitter,
        purpose=purpose,
        inputs=(),
        resources=Resources(gpus=1, walltime_s=60),
        params={},
        code_digest="",
    )


def data(site: str, name: ArtifactClass = ArtifactClass.RAW, categories: tuple[str, ...] = ()) -> Dataset:
    return Dataset(
        id=f"ds-{site}-{name}",
        name=f"laws-{site}",
        version=1,
        site=site,
        territory=site[:2],
        artifact_class=name,
        languages=("fr",),
        licence="open",
        source="test",
        shards=(),
        categories=categories,
    )


def test_reading_raw_data_of_uy_at_fr_is_denied_with_clause_file_and_line() -> None:
    requests = requests_for_job(spec(), [data("uy-1")], {"fr-1": SITES["fr-1"]})
    decision = BOOK.decide_all(requests["fr-1"])
    assert not decision.allowed
    (denial,) = decision.denials
    text = FEDERATION.text("policy", "uy")
    assert (denial.partner, denial.clause, denial.file) == ("uy", "uy/residency/1", "configs/policy/uy.yaml")
    assert text.text.splitlines()[denial.line - 1].strip() == "- {classes: [raw, clean], within: [uy]}"
    assert denial.message == "uy's raw data may be read in uy only, not in fr-1 (fr)"
    assert "it goes to its data" in denial.would_pass


DEMO = (
    (JobKind.CLEAN, "fr/amelie", ("fr-1",), ArtifactClass.RAW),
    (JobKind.CLEAN, "de/anna", ("de-1",), ArtifactClass.RAW),
    (JobKind.CLEAN, "uy/alma", ("uy-1",), ArtifactClass.RAW),
    (JobKind.TOKENIZE, "fr/amelie", ("fr-1", "de-1", "uy-1"), ArtifactClass.CLEAN),
    (JobKind.PRETRAIN, "fr/amelie", ("fr-1", "de-1", "uy-1"), ArtifactClass.TOKENS),
    (JobKind.PRETRAIN, "uy/alma", ("de-1", "uy-1"), ArtifactClass.TOKENS),
    (JobKind.EVALUATE, "fr/amelie", ("fr-1", "de-1", "uy-1"), ArtifactClass.TOKENS),
)


@pytest.mark.parametrize(("kind", "submitter", "sites", "name"), DEMO)
def test_jobs_of_the_demo_are_permitted(
    kind: JobKind, submitter: str, sites: tuple[str, ...], name: ArtifactClass
) -> None:
    inputs = [data(site, name) for site in sites]
    requests = requests_for_job(spec(kind, submitter), inputs, {site: SITES[site] for site in sites})
    assert sorted(requests) == sorted(sites)
    for site in sites:
        assert BOOK.decide_all(requests[site]).denials == ()
        own = PolicyBook.of(policy for policy in FEDERATION.policies if policy.partner == site[:2])
        assert own.decide_all(requests[site]).allowed, "the agent asks its own partner's policy alone"


def test_signatures_cross_only_where_a_clean_job_compares_sites_and_every_policy_lets_them() -> None:
    inputs, hosts = [data("fr-1"), data("de-1")], {site: SITES[site] for site in ("fr-1", "de-1")}
    alone = replace(spec(), params={"across": {"order": []}})
    assert not any(each.artifact_class == "minhash" for each in requests_for_job(alone, inputs, hosts)["fr-1"])
    together = requests_for_job(replace(spec(), params={"across": {"order": ["fr", "de"]}}), inputs, hosts)
    (denial,) = BOOK.decide_all(together["fr-1"]).denials
    assert (denial.partner, "minhash" in denial.message) == ("fr", True)
    policies = []
    for policy in FEDERATION.policies:
        text = FEDERATION.text("policy", policy.partner)
        opened = text.text.replace("classes: [statistic, tokenizer]", "classes: [statistic, tokenizer, minhash]")
        policies.append(parse_policy_text(opened, f"{policy.partner}.yaml"))
    assert all(PolicyBook.of(policies).decide_all(together[site]).allowed for site in hosts)


def test_an_optimisers_state_crosses_only_where_a_job_shares_it_and_every_policy_lets_it() -> None:
    inputs = [data(site, ArtifactClass.TOKENS) for site in SITES]
    requests = {
        share: requests_for_job(replace(spec(JobKind.PRETRAIN), params={"outer": {"share": share}}), inputs, SITES)[
            "fr-1"
        ]
        for share in ("none", "optimizer")
    }
    assert BOOK.decide_all(requests["none"]).allowed
    assert {one.artifact_class for one in requests["optimizer"]} > {"optimizer_state", "pseudo_gradient", "outer_state"}
    denials = BOOK.decide_all(requests["optimizer"]).denials
    assert {denial.partner for denial in denials} == {"fr"}
    assert "optimizer_state" in denials[0].message
    policies = []
    for policy in FEDERATION.policies:
        text = FEDERATION.text("policy", policy.partner)
        opened = text.text.replace("[pseudo_gradient, outer_state]", "[pseudo_gradient, optimizer_state, outer_state]")
        policies.append(parse_policy_text(opened, f"{policy.partner}.yaml"))
    assert PolicyBook.of(policies).decide_all(requests["optimizer"]).allowed


def test_a_federated_job_asks_for_what_its_kind_sends_between_each_pair_of_sites() -> None:
    inputs = [data(site, ArtifactClass.TOKENS) for site in SITES]
    requests = requests_for_job(spec(JobKind.PRETRAIN), inputs, SITES)["fr-1"]
    sent = {(r.artifact_class, r.destination_partner) for r in requests if r.action is Action.RELEASE}
    assert sent == {
        *((name, partner) for name in ("pseudo_gradient", "outer_state") for partner in ("de", "uy")),
        ("metric", "consortium"),
        ("control", "consortium"),
    }
    assert {(r.owner, r.host_site) for r in requests if r.action is Action.READ} == {("fr", "fr-1")}
    assert {r.owner for r in requests if r.action is Action.RECEIVE} == {"de", "uy"}


def test_who_reads_a_model_asks_everybody_whose_data_are_in_it() -> None:
    behind = [Behind(site=SITES["fr-1"], categories=("health-records",)), Behind(site=SITES["de-1"])]
    onward = spec(JobKind.PRETRAIN, purpose="health-research")
    decision = BOOK.decide_all(requests_for_model(onward, behind, {"fr-1": SITES["fr-1"]}))
    assert [d.clause for d in decision.denials] == ["de/purposes/1"], "France allows it, for its own part of the model"
    decision = BOOK.decide_all(requests_for_model(spec(JobKind.PRETRAIN), behind, {"uy-1": SITES["uy-1"]}))
    assert [d.clause for d in decision.denials] == ["fr/categories/1"]
    assert "a model made of fr's data of category health-records" in decision.denials[0].message
    plain = [Behind(site=SITES["fr-1"]), Behind(site=SITES["de-1"])]
    assert BOOK.decide_all(requests_for_model(spec(JobKind.PRETRAIN), plain, SITES)).allowed
    text = FEDERATION.text("policy", "de").text.replace("outer_state], to: [fr, uy]", "outer_state], to: [fr]")
    strict = PolicyBook.of([p for p in FEDERATION.policies if p.partner != "de"] + [parse_policy_text(text, "de.yaml")])
    asked = requests_for_model(spec(JobKind.PRETRAIN), plain, {name: SITES[name] for name in ("fr-1", "uy-1")})
    assert [d.clause for d in strict.decide_all(asked).denials] == ["de/artifacts/2"]


@pytest.mark.parametrize("reader", ["fr", "de", "uy", "consortium"])
@pytest.mark.parametrize("site", sorted(SITES))
def test_logs_of_uy_stay_in_uy_and_others_are_shown(site: str, reader: str) -> None:
    decision = BOOK.decide(log_request(spec(), SITES[site], reader))
    assert decision.allowed == (site != "uy-1" or reader == "uy")
    assert decision.allowed or [d.clause for d in decision.denials] == ["uy/logs/1"]


@pytest.mark.parametrize("name", list(ArtifactClass))
@pytest.mark.parametrize("sender", sorted(SITES))
def test_text_tokens_and_weights_do_not_leave(sender: str, name: ArtifactClass) -> None:
    peer = SITES["de-1" if sender != "de-1" else "fr-1"]
    decision = BOOK.decide(release_request(spec(JobKind.PRETRAIN), SITES[sender], name, peer))
    may = {"statistic", "tokenizer", "pseudo_gradient", "outer_state", "metric", "control"}
    may |= {"log"} if sender != "uy-1" else set()
    assert decision.allowed == (name.value in may)
    assert decision.allowed or all(d.message and d.would_pass and d.file and d.line for d in decision.denials)


def test_an_unknown_purpose_is_denied_by_every_partner_touched() -> None:
    inputs = [data(site, ArtifactClass.TOKENS) for site in SITES]
    requests = requests_for_job(spec(JobKind.PRETRAIN, purpose="surveillance"), inputs, SITES)
    decision = BOOK.decide_all(request for site in sorted(requests) for request in requests[site])
    assert [d.clause for d in decision.denials] == ["de/purposes/1", "fr/purposes/1", "uy/purposes/1"]
    assert "not 'surveillance'" in decision.denials[0].message


def test_nobody_elses_file_can_widen_a_denial() -> None:
    request = requests_for_job(spec(purpose="health-research"), [data("uy-1")], {"uy-1": SITES["uy-1"]})["uy-1"][0]
    assert not BOOK.decide(request).allowed
    assert BOOK.decide(request).consulted == ("uy",)


def test_a_partner_without_a_policy_denies() -> None:
    book = PolicyBook.of(policy for policy in FEDERATION.policies if policy.partner == "fr")
    decision = book.decide_all(requests_for_job(spec(), [data("uy-1")], {"fr-1": SITES["fr-1"]})["fr-1"])
    assert [d.message for d in decision.denials] == ["uy has no policy in force, so nothing of it may be used"]


def test_a_request_that_touches_nobody_is_denied() -> None:
    assert not BOOK.decide(Request(action=Action.RUN, purpose="language-model")).allowed


BASE = """partner: fr
version: 1
residency:
  - {classes: [raw, clean], within: [fr]}
  - {classes: [tokens], within: [fr, de]}
purposes:
  - allow: [language-model, health-research]
  - {allow: [language-model], kinds: [pretrain]}
artifacts:
  - {classes: [tokens], to: [de]}
  - {classes: [outer_state], to: []}
logs:
  - to: [consortium]
embargoes:
  - {partners: [uy]}
  - {partners: [de], actions: [run]}
cotenancy:
  - at_least: exclusive
categories:
  - {categories: [health-records], purposes: [health-research]}
  - {categories: [biometric]}
"""
SMALL = PolicyBook.of([parse_policy_text(BASE, "fr.yaml")])
HOST = {"host_site": "fr-1", "host_partner": "fr", "host_territory": "fr", "host_cotenancy": "exclusive"}
OWN = {"owner": "fr", "owner_territory": "fr", "artifact_class": "tokens", "purpose": "language-model"}
CASES = {
    "own tokens at home": (Action.READ, {}, []),
    "own tokens where allowed abroad": (Action.READ, {"host_territory": "de"}, []),
    "own tokens elsewhere": (Action.READ, {"host_territory": "es"}, ["fr/residency/2"]),
    "own raw text at home": (Action.READ, {"artifact_class": "raw"}, []),
    "own raw text kept abroad, read at home": (
        Action.READ,
        {"artifact_class": "raw", "owner_territory": "de"},
        ["fr/residency/1"],
    ),
    "a class no rule names, at home": (Action.READ, {"artifact_class": "weights"}, []),
    "a class no rule names, abroad": (
        Action.READ,
        {"artifact_class": "weights", "host_territory": "de"},
        ["fr/residency/default"],
    ),
    "cotenancy too loose": (Action.READ, {"host_cotenancy": "partner"}, ["fr/cotenancy/1"]),
    "cotenancy not said": (Action.READ, {"host_cotenancy": ""}, ["fr/cotenancy/1"]),
    "purpose allowed in general but not for the kind": (
        Action.READ,
        {"purpose": "health-research", "job_kind": "pretrain"},
        ["fr/purposes/2"],
    ),
    "health records for health": (
        Action.READ,
        {"purpose": "health-research", "categories": ("health-records",)},
        [],
    ),
    "health records for language": (Action.READ, {"categories": ("health-records",)}, ["fr/categories/1"]),
    "biometric for anything": (Action.READ, {"categories": ("biometric", "law")}, ["fr/categories/2"]),
    "a run by an embargoed partner": (Action.RUN, {"submitter_partner": "uy"}, ["fr/embargoes/1"]),
    "a run by a partner embargoed for runs": (Action.RUN, {"submitter_partner": "de"}, ["fr/embargoes/2"]),
    "a read by a partner embargoed for runs only": (Action.READ, {"submitter_partner": "de"}, []),
    "a release to an embargoed partner": (
        Action.RELEASE,
        {"destination_partner": "uy"},
        ["fr/embargoes/1", "fr/artifacts/1"],
    ),
    "receiving from an embargoed partner": (Action.RECEIVE, {"owner": "uy"}, ["fr/embargoes/1"]),
    "receiving from another": (Action.RECEIVE, {"owner": "de", "artifact_class": "outer_state"}, []),
    "receiving text": (Action.RECEIVE, {"owner": "de", "artifact_class": "clean"}, ["fr/text"]),
    "tokens to whom they may go": (Action.RELEASE, {"destination_partner": "de"}, []),
    "outer state to nobody": (
        Action.RELEASE,
        {"artifact_class": "outer_state", "destination_partner": "de"},
        ["fr/artifacts/2"],
    ),
    "outer state to itself": (Action.RELEASE, {"artifact_class": "outer_state", "destination_partner": "fr"}, []),
    "a class not listed": (
        Action.RELEASE,
        {"artifact_class": "weights", "destination_partner": "fr"},
        ["fr/artifacts/default"],
    ),
    "text, even to itself": (
        Action.RELEASE,
        {"artifact_class": "raw", "destination_partner": "fr"},
        ["fr/artifacts/default", "fr/text"],
    ),
    "a log to the server": (Action.RELEASE, {"artifact_class": "log", "destination_partner": "consortium"}, []),
    "a log to a partner": (Action.LOG, {"artifact_class": "log", "destination_partner": "de"}, ["fr/logs/1"]),
}


@pytest.mark.parametrize("name", CASES)
def test_rule(name: str) -> None:
    action, changes, clauses = CASES[name]
    decision = SMALL.decide(Request(action=action, **(HOST | OWN | changes)))  # type: ignore[arg-type]  plain table
    assert [denial.clause for denial in decision.denials] == clauses
    assert decision.allowed == (not clauses)
    lines = BASE.splitlines()
    for denial in decision.denials:
        section = denial.clause.split("/")[1]
        if denial.clause.split("/")[-1].isdigit():
            before = lines[: denial.line]
            assert lines[denial.line - 1].lstrip().startswith("- "), "the line is the rule's own"
            assert [line[:-1] for line in before if line.endswith(":")][-1] == section


def test_a_kind_of_job_that_no_purpose_opens_is_shut() -> None:
    text = BASE.replace("  - allow: [language-model, health-research]\n", "")
    text = text.replace("kinds: [pretrain]", "kinds: [pretrain, evaluate]")
    book = PolicyBook.of([parse_policy_text(text, "fr.yaml")])
    for action in (Action.RUN, Action.READ):
        for kind in JobKind:
            request = Request(action=action, **HOST, **OWN, job_kind=kind)  # type: ignore[arg-type]  plain table
            opened = kind in (JobKind.PRETRAIN, JobKind.EVALUATE)
            expected = [] if opened else ["fr/purposes/default"]
            assert [one.clause for one in book.decide(request).denials] == expected
    (denial,) = book.decide(Request(action=Action.RUN, **HOST, **OWN, job_kind="clean")).denials  # type: ignore[arg-type]  plain table
    assert denial.message == "fr lists no purpose that its data and sites serve in clean jobs"
    assert text.splitlines()[denial.line - 1] == "purposes:"
    assert "fr/purposes/default" not in {clause.id for clause in clauses(parse_policy_text(BASE, "fr.yaml"))}


def test_compiling_is_deterministic_whatever_the_order_of_names() -> None:
    turned = BASE.replace("[raw, clean]", "[clean, raw]").replace("[fr, de]", "[de, fr]")
    turned = turned.replace("[language-model, health-research]", "[health-research, language-model]")
    text, again = (
        "".join(clause.cedar for clause in clauses(parse_policy_text(source, "fr.yaml"))) for source in (BASE, turned)
    )
    assert text == again
    assert text.count("permit (") == 1
    assert '@id("fr/residency/1")' in text


@pytest.mark.parametrize("name", NEVER_CROSS)
@pytest.mark.parametrize("action", [Action.RELEASE, Action.RECEIVE])
@pytest.mark.parametrize("destination", ["fr", "de", "uy", "consortium", ""])
def test_text_never_crosses_in_any_policy_that_compiles(name: ArtifactClass, action: Action, destination: str) -> None:
    for book in (BOOK, SMALL):
        request = Request(action=action, **HOST, owner="fr", artifact_class=name, destination_partner=destination)
        assert not book.decide(request).allowed


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("classes: [tokens], to", "classes: [clean], to", "text never crosses"),
        ("[raw, clean], within: [fr]", "[raw, clean], within: [fr, de]", "text never crosses"),
        ("[raw, clean], within: [fr]", "[raw], within: [fr]", "residency must say where 'clean' is read"),
        ("classes: [outer_state]", "classes: [outer_state, tokens]", "lists 'tokens' twice"),
        ("classes: [outer_state]", "classes: [log]", "under `logs`"),
        ("partners: [uy]", "partners: [fr]", "names 'fr' itself"),
        ("partners: [uy]", "partners: [uruguay]", "ISO 3166"),
        ("allow: [language-model],", "allow: [],", "at least one purpose"),
        ("- to: [consortium]", "- to: [consortium]\n  - to: []", "exactly one rule"),
        ("to: [de]", "to: [everyone]", "neither a partner"),
        ("at_least: exclusive", "at_least: exclusve", "is not allowed"),
        ("version: 1", "version: 0", "at least 1"),
        ("categories: [biometric]", 'categories: ["a\\"b"]', "lower-case"),
    ],
)
def test_a_policy_that_says_too_much_or_too_little_is_a_config_error(old: str, new: str, what: str) -> None:
    assert old in BASE
    with pytest.raises(ConfigError, match=what) as fault:
        parse_policy_text(BASE.replace(old, new, 1), "fr.yaml")
    assert str(fault.value.where).startswith("fr.yaml:")


def test_two_policies_of_one_partner_are_refused() -> None:
    with pytest.raises(ConfigError, match="two policies"):
        PolicyBook.of([FEDERATION.policies[0], FEDERATION.policies[0]])


def test_a_foreign_site_on_the_land_of_a_partner_asks_that_partner_too() -> None:
    flavor = Flavor(id="x", memory_bytes=1, peak_tflops="1", measured_tflops="1", board_power_w=1,
                    reference_factor="1", factor_version="1")  # fmt: skip
    site = Site(id="de-2", partner="de", territory="uy", flavor=flavor, nodes=(Node(id="n", gpus=1),),
                cotenancy=Cotenancy.PARTNER)  # fmt: skip
    request = requests_for_job(spec(purpose="health-research"), [], {"de-2": site})["de-2"][0]
    assert BOOK.decide(request).consulted == ("de", "uy")
    assert [d.clause for d in BOOK.decide(request).denials] == ["de/purposes/1", "uy/purposes/1"]


def test_equal_requests_are_decided_once_and_fast() -> None:
    book = PolicyBook.of(FEDERATION.policies)
    request = requests_for_job(spec(), [data("fr-1")], {"fr-1": SITES["fr-1"]})["fr-1"][1]
    first = book.decide(request)
    start = time.perf_counter()
    for _ in range(10_000):
        assert book.decide(request) is first
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("name", ["Health-Records", " health-records", "HEALTH-RECORDS\n"])
def test_a_category_is_the_rules_own_however_it_is_written(name: str) -> None:
    hosts = {"fr-1": SITES["fr-1"]}
    plain, odd = (
        requests_for_job(spec(), [data("fr-1", categories=(each,))], hosts) for each in ("health-records", name)
    )
    assert odd == plain
