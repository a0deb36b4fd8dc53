"""Changes of the agreed quotas: single values edited in the text, what differs, and whose consent that needs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.accounting.periods import bounds
from consortium.config import default_dirs, load_federation, parse_quota_text
from consortium.config.quota_diff import consent_needed, quota_changes
from consortium.config.quota_edit import blamed, edit_quota
from consortium.errors import ConfigError

FILE = "configs/quota/consortium.yaml"
TEXT = (default_dirs().configs / "quota" / "consortium.yaml").read_text()
SITES = load_federation().sites
OCTOBER = bounds("2026-10")[0]
EVERYBODY = ("de", "fr", "uy")


def changes(*overrides, now_ms=OCTOBER, text=TEXT):
    return quota_changes(
        parse_quota_text(text, FILE, SITES), parse_quota_text(edit_quota(text, overrides, FILE), FILE, SITES), now_ms
    )


@pytest.mark.parametrize(
    ("override", "account", "what", "before", "after", "consent"),
    [
        ("accounts.fr.projects.health.quotas.h100-sxm.borrowing_limit=7", "fr/health", "borrowing limit h100-sxm", 6, 7,
         ("fr",)),
        ("accounts.fr.quotas.h100-sxm.lending_limit=4", "fr", "lending limit h100-sxm", None, 4, ("fr",)),
        ("accounts.uy.quotas.a100-40g.lending_limit=null", "uy", "lending limit a100-40g", 4, None, ("uy",)),
        ("accounts.fr.projects.health.weight=3", "fr/health", "weight", 1, 3, ("fr",)),
        ("accounts.fr.weight=3", "fr", "weight", 1, 3, EVERYBODY),
        ("accounts.de.quotas.h100-sxm.borrowing_limit=4", "de", "borrowing limit h100-sxm", None, 4, ("de",)),
        ("budgets.fr.2026-11=6000", "fr", "budget 2026-11", 5000, 6000, EVERYBODY),
        ("budgets.fr.2026-11=4000", "fr", "budget 2026-11", 5000, 4000, ("fr",)),
        ("budgets.fr.2026-12=10", "fr", "budget 2026-12", None, 10, ("fr",)),
        ("budgets.fr/health.2026-11=10", "fr/health", "budget 2026-11", None, 10, ("fr",)),
        ("pledges.uy.a100-40g.2026-11=2305", "uy", "pledge a100-40g 2026-11", 2304, 2305, ("uy",)),
    ],
)  # fmt: skip
def test_one_value_changes_and_only_that_and_whoever_it_takes_from_must_consent(
    override, account, what, before, after, consent
):
    (change,) = changes(override)
    assert (change.account, change.what, change.before, change.after) == (account, what, before, after)
    assert change.consent == consent
    assert not change.refused


def test_what_a_project_gets_is_carved_out_of_its_partners_own():
    found = {(c.account, c.what): (c.before, c.after) for c in changes(
        "accounts.fr.projects.health.quotas.h100-sxm.nominal=3")}  # fmt: skip
    assert found == {("fr", "nominal h100-sxm"): (6, 5), ("fr/health", "nominal h100-sxm"): (2, 3)}


def test_to_borrow_more_of_a_flavor_its_owners_must_consent():
    bounded = edit_quota(TEXT, ["accounts.de.quotas.h100-sxm.borrowing_limit=2"], FILE)
    (change,) = changes("accounts.de.quotas.h100-sxm.borrowing_limit=4", text=bounded)
    assert change.consent == ("de", "fr")
    assert consent_needed(changes("accounts.de.quotas.h100-sxm.borrowing_limit=1", text=bounded)) == ("de",)
    before, uy = TEXT.split("  uy:\n")
    undeclared = before + "  uy:\n" + uy.replace("      h100-sxm: {nominal: 0}\n", "", 1)
    assert undeclared != TEXT
    (change,) = changes("accounts.uy.quotas.h100-sxm.nominal=0", text=undeclared)
    assert (change.what, change.before, change.after) == ("borrowing limit h100-sxm", 0, None)
    assert change.consent == ("fr", "uy")


@pytest.mark.parametrize(("days_before", "refused"), [(31, False), (29, True), (-1, True)])
def test_a_pledge_is_lowered_with_its_notice_only(days_before, refused):
    begin = bounds("2026-11")[0]
    (change,) = changes("pledges.uy.a100-40g.2026-11=2000", now_ms=begin - days_before * 86_400_000)
    assert bool(change.refused) == refused
    if refused:
        assert change.refused == "lowering it needs 30 days' notice before 2026-11 begins"


def test_an_edit_keeps_comments_layout_and_everything_else():
    edited = edit_quota(TEXT, ["accounts.fr.projects.health.quotas.h100-sxm.nominal=1"], FILE)
    assert edited == TEXT.replace("{nominal: 2, borrowing_limit: 6}", "{nominal: 1, borrowing_limit: 6}")
    assert edit_quota(edited, ["accounts.fr.projects.health.quotas.h100-sxm.nominal=2"], FILE) == TEXT


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("accounts.fr", "not a change of a quota"),
        ("accounts.fr.weight=heavy", "not a change of a quota"),
        ("accounts.fr.weight=-1", "not a change of a quota"),
        ("account.fr.weight=1", "unknown key 'account.fr.weight'"),
        ("accounts.fr.quotas=1", "no single value"),
        ("accounts.fr.wait=1", "unknown key 'wait'"),
        ("accounts.fr.quotas.h100-sxm.nominal.x=1", "unknown key 'x'"),
        ("accounts=1", "'accounts' is no single value"),
        ("accounts.zz.quotas.h100-sxm.nominal=1", "unknown partner 'zz'"),
        ("accounts.rf.projects.health.quotas.h100-sxm.nominal=1", "unknown partner 'rf'\n.*\n.*did you mean 'fr'"),
        ("accounts.fr.projects.helth.quotas.h100-sxm.borrowing_limit=3", "'helth'\n.*\n.*did you mean 'health'"),
        ("accounts.fr.projects.helth.weight=3", "unknown project of fr: 'helth'"),
        ("accounts.fr.weight=" + "7" * 5000, "a number of 5,000 digits"),
        ("budgets.fr=1", "not an entry of a list"),
        ("budgets.fr.2026-11=null", "not an entry of a list"),
        ("pledges.fr.mi300x.2026-11=1", "no such entry in pledges"),
    ],
)
def test_a_change_that_means_nothing_is_refused(override, what):
    with pytest.raises(ConfigError, match=what) as fault:
        edit_quota(TEXT, [override], FILE)
    assert override[:120] in str(fault.value.where)


def test_a_project_is_made_by_its_nominal():
    more = ["accounts.fr.projects.space.quotas.h100-sxm.borrowing_limit=3"]
    nominal = "accounts.fr.projects.space.quotas.h100-sxm.nominal=0"
    for overrides in ([*more, nominal], [nominal, *more]):
        assert ("fr/space", "account") in {(c.account, c.what) for c in changes(*overrides)}


HEALTH = "accounts.fr.projects.health.quotas.h100-sxm.nominal=9"


@pytest.mark.parametrize(
    ("overrides", "guilty"),
    [
        ([HEALTH], [1]),
        (["budgets.de.2030-01=5", HEALTH, "budgets.uy.2030-01=5"], [2]),
        ([HEALTH, "accounts.de.weight=2", "accounts.fr.weight=2"], [1]),
        (["budgets.fr.2026-13=3"], [1]),
        (["budgets.fr.2026-12=3", "budgets.fr.2026-13=3"], [2]),
        (["accounts.fr.weight=2", "accounts.fr.quotas.h100sxm.nominal=1"], [2]),
        (["accounts.de.weight=2", "accounts.fr.quotas.h100-sxm.nominal=7"], [2]),
        (["accounts.fr.projects.new.weight=5000", "accounts.fr.projects.new.quotas.h100-sxm.nominal=0"], [1, 2]),
    ],
)
def test_what_the_changed_text_cannot_hold_is_the_fault_of_a_change(overrides, guilty):
    with pytest.raises(ConfigError) as fault:
        changes(*overrides)
    found = blamed(fault.value, TEXT, overrides, FILE)
    assert found.where == "; ".join(f"override {number}: {overrides[number - 1]}" for number in guilty)
    assert (found.what, found.fix) == (fault.value.what, fault.value.fix)


def test_a_fault_of_no_line_keeps_its_place():
    fault = ConfigError("x", where="elsewhere.yaml:3")
    assert blamed(fault, TEXT, [HEALTH], FILE) is fault


def test_a_stranger_is_named_before_the_sums():
    text = TEXT.replace("  uy:\n", "  yu:\n", 1)
    with pytest.raises(ConfigError, match="unknown partner 'yu'"):
        parse_quota_text(text, FILE, SITES, ("de", "fr", "uy"))


@pytest.mark.parametrize(
    ("entries", "what"),
    [
        ("budgets:\n- {account: uy, period: '2027-01', reference_gpu_hours: 1}\n- {account: uy, period: '2027-01', "
         "reference_gpu_hours: 2}", "budgets: uy 2027-01 is listed twice"),
        ("pledges:\n- {partner: fr, flavor: h100-sxm, period: '2027-01', gpu_hours: 2, notice_days: 1}\n"
         "- {partner: fr, flavor: h100-sxm, period: '2027-01', gpu_hours: 1, notice_days: 0}",
         "pledges: fr h100-sxm 2027-01 is listed twice"),
        ('budgets: [{account: fr, period: "2027-01\\n", reference_gpu_hours: 1}]', "must be a month such as 2026-11"),
    ],
)  # fmt: skip
def test_an_entry_stands_once_and_its_period_is_a_month(entries, what):
    """Of two entries the last counted, and `quota plan budgets...=` changed the first."""
    text = f"{TEXT.partition('budgets:')[0]}{entries}\n"
    with pytest.raises(ConfigError, match=what) as fault:
        parse_quota_text(text, FILE, SITES, ("de", "fr", "uy"))
    assert str(fault.value.where).startswith(FILE + ":")


def test_a_change_that_the_file_cannot_hold_is_refused_with_its_line():
    with pytest.raises(ConfigError, match="hold 9 h100-sxm, its sites deliver 8") as fault:
        changes("accounts.fr.projects.health.quotas.h100-sxm.nominal=9")
    assert str(fault.value.where).startswith(FILE + ":")


@settings(max_examples=30)
@given(
    st.lists(
        st.sampled_from(
            ["accounts.fr.weight", "accounts.de.projects.research.weight", "budgets.uy.2026-11", "budgets.de.2027-01",
             "accounts.uy.quotas.a100-40g.lending_limit", "accounts.de.projects.research.quotas.a100-80g.nominal"]
        ).flatmap(lambda key: st.integers(1, 4).map(lambda value: f"{key}={value}")),
        max_size=6,
    )
)  # fmt: skip
def test_whatever_is_edited_reads_back_as_said(overrides):
    text = edit_quota(TEXT, overrides, FILE)
    read = parse_quota_text(text, FILE, SITES)
    said = dict(override.split("=") for override in overrides)
    accounts = {account.id: account for account in read.accounts}
    for key, value in said.items():
        if key == "accounts.fr.weight":
            assert accounts["fr"].weight == int(value)
        elif key.startswith("budgets."):
            _, account, period = key.split(".")
            (found,) = [b for b in read.budgets if (b.account, b.period) == (account, period)]
            assert found.reference_gpu_ms == int(value) * 3_600_000
    assert edit_quota(text, overrides, FILE) == text
