"""The sites in a report: what their partners' signed files say, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from consortium.domain.codec import from_json, to_json
from consortium.domain.records import Record, RecordType
from consortium.errors import VerificationError
from consortium.keys.documents import DocumentKind, sign_document
from consortium.keys.signing import SigningKey, sign_value
from consortium.reports.build import build_report
from consortium.reports.facts import read_facts
from consortium.reports.figures import figures
from consortium.reports.sites import check_sites, site_facts
from consortium.reports.verify import verify_report
from tests.reports import builders as b


def site_file(
    world: Any, site: str, factor: str = "", *, version: int = 1, key: SigningKey | None = None, partner: str = ""
) -> Record:
    """Record a site's file, signed by its partner."""
    flavor, declared = b.FACTORS[site]
    text = (
        f"# of {site}\nid: {site}\npartner: {site[:2]}\nterritory: {site[:2]}\nflavor:\n  id: {flavor}\n"
        f'  reference_factor: "{factor or declared}"\n  factor_version: declared-1\n'
    )
    document = sign_document(
        key or world.keys[site], kind=DocumentKind.SITE, partner=partner or site[:2], version=version, issued_ms=1,
        expires_ms=2, file=f"clusters/{site}.yaml", text=text,
    )  # fmt: skip
    record: Record = world.add("server", RecordType.SITE, {"partner": site[:2], "document": document})
    return record


def build(world: Any, folder: Path) -> dict[str, Any]:
    with world.log(folder) as log:
        return build_report(partner="fr", period=b.PERIOD, log=log, sites=world.sites, trust=world.trust,
                            key=world.keys["server"], made_ms=1_777_000_000_123)  # fmt: skip


def recomputed(world: Any, made: dict[str, Any]) -> dict[str, Any]:
    """Return what a server that lies would sign: with figures that follow."""
    records = [from_json(Record, leaf["payload"]) for leaf in made["leaves"]]
    factors = {site["id"]: site["reference_factor"] for site in made["sites"]}
    told = made | {"figures": to_json(figures(read_facts(records, "fr", b.PERIOD), "fr", factors))}
    return sign_value(world.keys["server"], {k: v for k, v in told.items() if k != "signature"})


def test_a_factor_that_the_partners_file_does_not_state_is_found(tmp_path: Path) -> None:
    world = b.example()
    site_file(world, "fr-1")
    made = build(world, tmp_path)
    assert "1 of 3 sites are as their partners' signed files say" in verify_report(made, world.trust).checks
    sites = [site | {"reference_factor": "100"} if site["id"] == "fr-1" else site for site in made["sites"]]
    with pytest.raises(VerificationError, match="its partner's file says"):
        verify_report(recomputed(world, made | {"sites": sites}), world.trust)
    moved = [site | {"territory": "xx"} if site["id"] == "fr-1" else site for site in made["sites"]]
    with pytest.raises(VerificationError, match="its partner's file says"):
        verify_report(recomputed(world, made | {"sites": moved}), world.trust)


def test_the_newest_file_holds_whatever_the_server_has(tmp_path: Path) -> None:
    world = b.example()
    site_file(world, "fr-1", "0.9", version=2)
    site_file(world, "fr-1", "0.1", version=1)
    (factor,) = [site["reference_factor"] for site in build(world, tmp_path)["sites"] if site["id"] == "fr-1"]
    assert factor == "0.9"


def test_what_ran_at_a_site_that_has_left_still_counts_by_its_file(tmp_path: Path) -> None:
    world = b.example()
    for site in b.FACTORS:
        site_file(world, site)
    whole = world.report(tmp_path / "before")
    left = [site for site in world.sites if site.partner != "de"]
    with world.log(tmp_path / "after") as log:
        made = build_report(partner="fr", period=b.PERIOD, log=log, sites=left, trust=world.trust,
                            key=world.keys["server"], made_ms=1_777_000_000_123)  # fmt: skip
    assert made["figures"] == whole["figures"]
    assert made["sites"] == whole["sites"]
    assert made["figures"]["consumed"]["total"]["reference_gpu_hours"] == "10.4960"
    verify_report(made, world.trust)


@pytest.mark.parametrize(
    "signed", [{"key": SigningKey.generate()}, {"partner": "de", "key": "de-1"}, {"partner": "consortium"}]
)
def test_a_file_that_the_sites_partner_did_not_sign_is_found(tmp_path: Path, signed: dict[str, Any]) -> None:
    world = b.example()
    if isinstance(signed.get("key"), str):
        signed = signed | {"key": world.keys[signed["key"]]}
    site_file(world, "fr-1", **signed)
    with pytest.raises(VerificationError, match=r"signature of the site of fr|no file of this site"):
        build(world, tmp_path)


@pytest.mark.parametrize("factor", ["-5", "0", "1/3", "1/0", "1e12", "1e9999", "1_0", "nan", "10000", "\u0661", " 1"])
def test_a_factor_is_a_decimal_number_above_zero(tmp_path: Path, factor: str) -> None:
    world = b.example()
    made = build(world, tmp_path)
    sites = [site | {"reference_factor": factor} if site["id"] == "fr-1" else site for site in made["sites"]]
    with pytest.raises(VerificationError, match="reference factor of fr-1"):
        verify_report(sign_value(world.keys["server"], made | {"sites": sites}), world.trust)


def test_a_file_by_rules_that_hold_no_more_stops_no_report(tmp_path: Path) -> None:
    world = b.example()
    site_file(world, "fr-1", "0.0005", version=1)
    site_file(world, "fr-1", "0.9", version=2)
    site_file(world, "uy-1", "5000")
    made = build(world, tmp_path)
    factors = {site["id"]: site["reference_factor"] for site in made["sites"]}
    assert (factors["fr-1"], factors["uy-1"]) == ("0.9", b.FACTORS["uy-1"][1])
    assert "1 of 3 sites are as their partners' signed files say" in verify_report(made, world.trust).checks


def test_a_site_that_has_left_is_in_no_report_by_a_file_that_does_not_hold(tmp_path: Path) -> None:
    world = b.example()
    site_file(world, "uy-1", key=SigningKey.generate())
    left = [site for site in world.sites if site.partner != "uy"]
    with world.log(tmp_path) as log:
        made = build_report(partner="fr", period=b.PERIOD, log=log, sites=left, trust=world.trust,
                            key=world.keys["server"], made_ms=1_777_000_000_123)  # fmt: skip
    assert [site["id"] for site in made["sites"]] == ["de-1", "fr-1"]


def test_sites_are_known_and_stand_once(tmp_path: Path) -> None:
    world = b.example()
    made = build(world, tmp_path)
    other = [made["sites"][0] | {"id": "fr-9", "partner": "fr"}]
    for sites, why in (
        (made["sites"] * 2, "stands in the report twice"),
        ([*made["sites"], *other], "no trusted key for site 'fr-9'"),
        ([made["sites"][0] | {"partner": "uy"}], "no site of a partner"),
        ([made["sites"][0] | {"territory": "\x1b[2J"}], "no site of a partner"),
    ):
        with pytest.raises(VerificationError, match=why):
            verify_report(recomputed(world, made | {"sites": sites}), world.trust)


def test_the_file_of_a_site_that_is_in_no_report_any_more_is_not_asked(tmp_path: Path) -> None:
    world = b.World()
    stays, left = site_file(world, "fr-1"), site_file(world, "uy-1", key=SigningKey.generate())
    here = [site_facts(stays)]
    assert check_sites(here, [stays, left], world.trust) == 1
    with pytest.raises(VerificationError):
        check_sites([*here, site_facts(left)], [stays, left], world.trust)
