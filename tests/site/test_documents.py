"""The partner's own copy of the rules: what is broken, superseded or expired, and what stays in force all the same."""

from __future__ import annotations

import pytest

from consortium.errors import VerificationError
from consortium.keys.documents import DocumentKind, save_document, sign_document
from consortium.keys.trust import Trust
from consortium.site.documents import Documents
from tests.site.world import CONFIGS, DAY_MS, REPO, World, now_ms

POLICY = (CONFIGS / "policy" / "fr.yaml").read_text()


@pytest.fixture
def documents(world: World) -> Documents:
    return Documents(world.documents, "fr", Trust.load(world.settings().trust_path))


def put(world: World, kind: str, partner: str, text: str, name: str, version: int, expires_ms: int = 0) -> None:
    document = sign_document(
        world.partner_keys[partner],
        kind=DocumentKind(kind),
        partner=partner,
        version=version,
        issued_ms=1_000 + version,
        expires_ms=expires_ms or now_ms() + DAY_MS,
        file=f"configs/{kind}/{partner}.yaml",
        text=text,
    )
    save_document(document, world.documents / f"{name}.json")


TWICE = "partner: de\npeople:\n" + "- {id: de/x, name: X, roles: [engineer], signing_key: k}\n" * 2
BOMB = "x: &a [1]\npartner: de\npeople: [*a, *a]\n"


@pytest.mark.parametrize(
    "text",
    [TWICE, "people: 2024-13-45\n", "[" * 5000, BOMB, "partner: fr\npeople: []\n", "people: [", "a: " + "9" * 5000],
)
@pytest.mark.parametrize("kind", ["roster", "site"])
def test_a_file_of_another_partner_that_says_nothing_keeps_no_other_from_being_read(
    world: World, documents: Documents, kind: str, text: str
) -> None:
    put(world, kind, "de", text, "aaa-first-by-name", 1)
    faults = documents.refresh(now_ms())
    assert list(faults) == ["aaa-first-by-name.json"]
    assert documents.rosters(now_ms()).person("fr/amelie").id == "fr/amelie"
    assert documents.site("fr-1", now_ms()).partner == "fr"


def test_what_is_no_document_is_absent_and_said(world: World, documents: Documents) -> None:
    (world.documents / "deep.json").write_text("[" * 100_000)
    (world.documents / "digits.json").write_text('{"version": ' + "9" * 5000 + "}")
    (world.documents / ".#policy-de.json").symlink_to("user@host.1")
    (world.documents / "dangling.json").symlink_to("nowhere")
    assert sorted(documents.refresh(now_ms())) == ["dangling.json", "deep.json", "digits.json"]
    assert documents.policy(now_ms())


def test_of_two_versions_the_newest_counts_whatever_it_is_called(world: World, documents: Documents) -> None:
    raw = (REPO / "clusters" / "de-1.yaml").read_text()
    put(world, "site", "de", raw.replace("territory: de", "territory: us"), "aaa", 2)
    for name in ("site-de-1", "zzz"):
        put(world, "site", "de", raw, name, 1)
    assert documents.site("de-1", now_ms()).territory == "us"
    people = "partner: fr\npeople: []\n"
    put(world, "roster", "fr", world.roster(), "roster-fr", 1)
    put(world, "roster", "fr", people, "aaa-roster", 2)
    assert documents.rosters(now_ms()).people == ()


def test_what_a_policy_took_the_place_of_stays_out_of_force_once_that_has_expired(
    world: World, documents: Documents
) -> None:
    put(world, "policy", "fr", POLICY, "policy-fr", 1)
    put(world, "policy", "fr", POLICY.replace("[metric, control]", "[control]"), "aaa", 2, now_ms() + 60_000)
    newest = documents.policy_digest(now_ms())
    assert newest
    later = now_ms() + 120_000
    assert documents.policy_digest(later) == ""
    with pytest.raises(VerificationError, match="no policy of fr"):
        documents.policy(later)
    assert "expired" in documents.refresh(later)["aaa.json"]


def test_a_document_that_expired_before_there_was_a_calendar_is_expired(world: World, documents: Documents) -> None:
    put(world, "roster", "de", "partner: de\npeople: []\n", "roster-de", 1, -(10**17))
    (fault,) = documents.refresh(now_ms()).values()
    assert "expired" in fault
