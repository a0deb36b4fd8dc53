"""The directory of an embedded federation: valid, secrets 0600, and a second start keeps what it must."""

from __future__ import annotations

import json
import shutil
import socket
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from consortium.config import Dirs, default_dirs
from consortium.errors import ConfigError, ConflictError, NotFoundError, UsageError
from consortium.keys.documents import load_document, save_document
from consortium.keys.roster import Roster, Rosters
from consortium.keys.signing import SigningKey, sign_value
from consortium.keys.tokens import check
from consortium.keys.trust import Trust
from consortium.local.identities import TOKEN_MS, make_identities, renew_tokens
from consortium.local.layout import drop_ray_tmp, prepare
from consortium.local.paths import FederationDir
from consortium.server.settings import ServerSettings
from consortium.site.settings import SiteSettings

NOW = 1_800_000_000_000


@pytest.fixture
def built(own_home: Path):
    directory = FederationDir.named("t")
    yield prepare(directory, default_dirs(), now_ms=NOW)
    drop_ray_tmp(directory)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_settings_files_load_and_agree_with_each_other(built) -> None:
    directory, federation = built.directory, built.federation
    server = ServerSettings.load(directory.server / "config.json")
    assert federation["server_url"] == f"http://127.0.0.1:{server.port}"
    sites = {site: SiteSettings.load(directory.site(site) / "config.json") for site in federation["sites"]}
    assert sorted(sites) == ["de-1", "fr-1", "uy-1"]
    for name, settings in sites.items():
        assert settings.site.id == name
        assert set(settings.peer_egress) == set(sites) - {name}
        for peer, store in settings.peer_egress.items():
            assert store.endpoint != sites[peer].egress_store.endpoint, "peers get the read-only endpoint"
            assert store.secret() != sites[peer].egress_store.secret()
        assert settings.private_store.secret() != settings.egress_store.secret()


def test_keys_tokens_and_settings_are_for_the_owner_only(built) -> None:
    root = built.directory.root
    secret = [p for p in root.rglob("*") if p.suffix in (".key", ".secret", ".token") or p.name == "token"]
    secret += [built.directory.client_file, built.directory.server / "config.json"]
    assert len(secret) > 30
    assert {path.name: oct(_mode(path)) for path in secret if _mode(path) != 0o600} == {}
    assert _mode(root) == 0o700
    public = built.directory.federation_file.read_text() + built.directory.trust_file.read_text()
    for path in secret:
        if path.suffix in (".secret", ".token") or path.name == "token":
            assert path.read_text().strip() not in public


def test_documents_hold_and_rosters_name_the_people_whose_keys_lie_here(built) -> None:
    directory = built.directory
    trust = Trust.load(directory.trust_file)
    documents = [load_document(path, trust) for path in sorted(directory.documents.glob("*.json"))]
    kinds = sorted(document.kind.value for document in documents)
    assert kinds == ["policy"] * 3 + ["quota"] + ["roster"] * 3 + ["site"] * 3
    rosters = Rosters.of(Roster.parse(d) for d in documents if d.kind == "roster")
    client = directory.client()
    for person in rosters.people:
        assert SigningKey.load(client["key_paths"][person.id]).public == person.signing_key
        token = Path(client["token_paths"][person.id]).read_text().strip()
        claims = check(trust.server_key, token, NOW)
        assert (claims.subject, set(claims.roles)) == (person.id, set(person.roles))
    assert client["default_person"] == "de/anna"


def test_tokens_are_renewed_with_half_of_their_time_left_and_say_what_they_said(built) -> None:
    directory = built.directory
    key, client = Trust.load(directory.trust_file).server_key, directory.client()
    paths = [*map(Path, client["token_paths"].values()), directory.site("fr-1") / "token"]
    before = {path: path.read_text() for path in paths}
    assert not renew_tokens(directory, NOW + TOKEN_MS // 2)
    assert {path: path.read_text() for path in paths} == before
    late = NOW + TOKEN_MS // 2 + 1
    assert renew_tokens(directory, late)
    for path in paths:
        was, now = (check(key, text.strip(), late) for text in (before[path], path.read_text()))
        assert now == replace(was, expires_ms=late + TOKEN_MS)
        assert _mode(path) == 0o600
    assert not renew_tokens(directory, late)


def test_a_site_holds_its_own_policy_and_nobody_elses(built) -> None:
    names = sorted(path.name for path in (built.directory.site("fr-1") / "documents").glob("*.json"))
    assert [name for name in names if name.startswith("policy")] == ["policy-fr.json"]
    assert [name for name in names if name.startswith("roster")] == [
        "roster-de.json",
        "roster-fr.json",
        "roster-uy.json",
    ]


def test_a_second_preparation_keeps_keys_ports_and_document_versions(built) -> None:
    directory = built.directory
    before = {p: p.read_bytes() for p in directory.root.rglob("*") if p.suffix in (".key", ".secret")}
    documents = {p.name: p.read_bytes() for p in directory.documents.glob("*.json")}
    again = prepare(directory, default_dirs(), now_ms=NOW + 1000)
    assert {p: p.read_bytes() for p in before} == before
    assert {p.name: p.read_bytes() for p in directory.documents.glob("*.json")} == documents
    assert again.federation["ports"] == built.federation["ports"]
    assert again.federation["id"] == built.federation["id"]


def test_the_keys_of_who_has_left_stay_known(built) -> None:
    directory, config = built.directory, built.config
    before = Trust.load(directory.trust_file)
    partners = [partner for partner in config.partners if partner.id != "uy"]
    sites = [site for site in config.sites if site.partner != "uy"]
    made = make_identities(directory, directory.name, partners, (), sites)
    assert made.trust == Trust.load(directory.trust_file) == before
    assert "uy" not in made.partners
    directory.trust_file.write_text("{")
    with pytest.raises(ConfigError, match="trusted keys") as fault:
        make_identities(directory, directory.name, partners, (), sites)
    assert "restore it from a copy" in str(fault.value.fix)


def test_a_taken_port_is_replaced_by_another(built) -> None:
    port = built.federation["ports"]["mlflow"]
    with socket.create_server(("127.0.0.1", port)):
        again = prepare(built.directory, default_dirs(), now_ms=NOW)
    assert again.federation["ports"]["mlflow"] != port
    assert again.federation["ports"]["server"] == built.federation["ports"]["server"]


def test_a_changed_policy_is_signed_again_with_the_next_version(own_home: Path, tmp_path: Path) -> None:
    import shutil

    from consortium.config import Dirs

    dirs = default_dirs()
    copy = Dirs(configs=tmp_path / "configs", clusters=tmp_path / "clusters")
    shutil.copytree(dirs.configs, copy.configs)
    shutil.copytree(dirs.clusters, copy.clusters)
    directory = FederationDir.named("t")
    try:
        prepare(directory, copy, now_ms=NOW)
        policy = copy.configs / "policy" / "fr.yaml"
        policy.write_text(policy.read_text() + "\n# amended\n")
        prepare(directory, copy, now_ms=NOW)
        trust = Trust.load(directory.trust_file)
        changed = load_document(directory.documents / "policy-fr.json", trust)
        same = load_document(directory.documents / "policy-de.json", trust)
        assert (changed.version, same.version) == (2, 1)
        assert changed.text.endswith("# amended\n")
        assert (directory.site("fr-1") / "documents" / "policy-fr.json").read_bytes() == (
            directory.documents / "policy-fr.json"
        ).read_bytes()
    finally:
        drop_ray_tmp(directory)


def test_a_wanted_port_in_use_is_refused_by_name(own_home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConflictError, match=rf"port {port}.*the server.*in use"):
            prepare(FederationDir.named("t"), default_dirs(), now_ms=NOW, server_port=port)


def test_a_half_written_federation_file_is_named_with_its_line(built) -> None:
    built.directory.federation_file.write_text('{"id": "x",\n "sites": {')
    with pytest.raises(ConfigError) as fault:
        prepare(built.directory, default_dirs(), now_ms=NOW)
    assert "federation.json:2" in str(fault.value)
    built.directory.federation_file.write_text(json.dumps(built.federation))


def test_no_federation_yet_is_not_found_and_bad_names_are_refused(own_home: Path) -> None:
    with pytest.raises(NotFoundError, match="no embedded federation yet"):
        FederationDir.current()
    with pytest.raises(UsageError, match="federation name"):
        FederationDir.named("../../etc")


def test_quotas_that_admins_applied_stay_in_force_until_the_config_changes(own_home: Path, tmp_path: Path) -> None:
    """The server writes an applied quota where the documents lie; starting again must not undo it."""
    dirs = Dirs(configs=tmp_path / "configs", clusters=tmp_path / "clusters")
    shutil.copytree(default_dirs().configs, dirs.configs)
    shutil.copytree(default_dirs().clusters, dirs.clusters)
    directory = FederationDir.named("applied")
    prepare(directory, dirs, now_ms=NOW)
    trust, path = Trust.load(directory.trust_file), directory.documents / "quota.json"
    key, first = SigningKey.load(directory.server / "server.key"), load_document(path, trust)
    applied = first.text.replace("{nominal: 2, borrowing_limit: 6}", "{nominal: 3, borrowing_limit: 6}")
    save_document(sign_value(key, replace(first, version=first.version + 1, text=applied)), path)
    prepare(directory, dirs, now_ms=NOW + 1)
    assert load_document(path, trust).text == applied
    file = dirs.configs / "quota" / "consortium.yaml"
    file.write_text(file.read_text() + "# agreed anew\n")
    prepare(directory, dirs, now_ms=NOW + 2)
    found = load_document(path, trust)
    assert (found.text, found.version) == (file.read_text(), first.version + 2)
    drop_ray_tmp(directory)
