"""Every file in configs/ and clusters/ is composed, and belongs to something that composes it."""

from __future__ import annotations

import pytest

from consortium.config import compose_job, default_dirs, load_federation, load_scenario, parse_site_text
from consortium.config.kinds import GROUPS
from consortium.config.overrides import allowed_keys
from consortium.domain.job import JobKind

DIRS = default_dirs()
FILES = sorted(path.relative_to(DIRS.configs).as_posix() for path in DIRS.configs.rglob("*") if path.is_file())
FEDERATION = ("partner", "policy", "quota", "server")
CHOICES = {group: kind for kind, groups in GROUPS.items() for group in groups}


@pytest.mark.parametrize("file", FILES)
def test_config_file_is_composed(file: str) -> None:
    group, _, name = file.removesuffix(".yaml").rpartition("/")
    assert file.endswith(".yaml")
    if group == "job":
        job = compose_job(name)
        assert job.kind.value == name
        assert job.params
    elif group in CHOICES:
        job = compose_job(CHOICES[group].value, [f"{group}={name}"])
        assert job.params
    elif (parent := group.rpartition("/")[0]) in CHOICES:
        choices = (DIRS.configs / parent).glob("*.yaml")
        assert any(f"- {group.removeprefix(parent + '/')}/{name}\n" in choice.read_text() for choice in choices)
    elif group == "scenario":
        assert load_scenario(name).name == name
    elif group == "scenario/variant":
        assert load_scenario("itp-ten-states", [f"variant={name}"]).variant == name
    else:
        assert (group, name) == ("", "federation") or group in FEDERATION
        assert group == "" or f"configs/{file}" in {item.file for item in load_federation().files}


@pytest.mark.parametrize("path", sorted(DIRS.clusters.glob("*")), ids=lambda path: path.name)
def test_cluster_file_is_a_site(path) -> None:
    site = parse_site_text(path.read_text(), f"clusters/{path.name}").site
    assert site.id == path.stem
    assert site in load_federation().sites


def test_the_federation_is_the_one_of_the_demo() -> None:
    federation = load_federation()
    assert [(site.id, site.gpus, site.flavor.id) for site in federation.sites] == [
        ("de-1", 8, "a100-80g"),
        ("fr-1", 8, "h100-sxm"),
        ("uy-1", 4, "a100-40g"),
    ]
    assert {site.gpu_resource for site in federation.sites} == {"sim_gpu"}
    roles = {(person.id[:2], role.value) for person in federation.people for role in person.roles}
    assert roles == {(p, role) for p in ("fr", "de", "uy") for role in ("engineer", "admin", "auditor")}
    assert federation.text("policy", "uy").text == (DIRS.configs / "policy" / "uy.yaml").read_text()
    assert federation.server.site_lost_ms >= federation.server.lease_ms + federation.server.max_skew_ms


def test_nominals_of_the_tree_add_up_to_what_sites_deliver() -> None:
    federation = load_federation()
    for site in federation.sites:
        quotas = [q for a in federation.accounts for q in a.quotas if q.flavor == site.flavor.id]
        assert sum(quota.nominal for quota in quotas) == site.gpus
    health = next(account for account in federation.accounts if account.id == "fr/health")
    assert health.parent == "fr"
    assert [(q.flavor, q.nominal, q.borrowing_limit) for q in health.quotas] == [("h100-sxm", 2, 6)]
    assert federation.accounts[0].id == ""


@pytest.mark.parametrize("kind", list(JobKind))
def test_every_key_of_a_kind_stands_in_its_config(kind: JobKind) -> None:
    job = compose_job(kind.value)
    for key in allowed_keys(kind):
        value: object = job.params
        for step in key.split("."):
            value = value[step] if isinstance(value, dict) and step in value else None
        assert value is not None or hasattr(job, key) or key in GROUPS[kind]
