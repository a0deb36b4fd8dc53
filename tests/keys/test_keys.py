from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st

from consortium.domain.job import JobKind, JobSpec, Resources, SignedSpec
from consortium.domain.partner import Role
from consortium.domain.records import Record, RecordType
from consortium.errors import AuthError, ConfigError, ConflictError, NotFoundError, UsageError, VerificationError
from consortium.keys import sealing
from consortium.keys.canonical import canonical, digest_json
from consortium.keys.code import code_digest
from consortium.keys.documents import SignedDocument, check_unexpired, load_document, save_document, sign_document
from consortium.keys.roster import Roster, Rosters, verify_spec
from consortium.keys.sealing import SealingKey, open_sealed, seal
from consortium.keys.signing import SigningKey, fingerprint, sign_value, verify, verify_value
from consortium.keys.tokens import check, issue
from consortium.keys.trust import SiteKeys, Trust


@pytest.fixture(scope="module")
def root() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture(scope="module")
def trust(root: SigningKey) -> Trust:
    site = SiteKeys(signing=SigningKey.generate().public, sealing=SealingKey.generate().public)
    server = SigningKey.generate().public
    return Trust(log_name="log", log_key=server, server_key=server, partners={"fr": root.public}, sites={"fr-1": site})


def record(**changes: object) -> Record:
    base = Record(type=RecordType.JOB, origin="fr-1", seq=0, previous="", at_ms=1, body={"n": 2**60, "f": 0.5})
    return replace(base, **changes)


class TestCanonical:
    def test_key_order_does_not_matter(self) -> None:
        assert canonical({"b": 1, "a": [1.0, None]}) == b'{"a":[1,null],"b":1}'

    def test_integers_above_what_json_readers_keep_become_strings(self) -> None:
        assert canonical({"n": 2**53}) == b'{"n":"9007199254740992"}'

    @pytest.mark.parametrize("value", [{"x": float("nan")}, "\ud800", {"\ud800": 1}, {"a": {"\udfff": 1}}])
    def test_what_json_does_not_hold_is_refused(self, value: object) -> None:
        with pytest.raises(UsageError, match="cannot be written as"):
            canonical(value)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        )
    )
    def test_reading_and_writing_again_gives_the_same_bytes(self, value: object) -> None:
        written = canonical(value)
        assert canonical(json.loads(written)) == written

    @given(
        st.recursive(
            st.integers(1 - 2**53, 2**53 - 1) | st.floats(-1e6, 1e6) | st.text('a\x00\x1f\x7f\n"\\/\u2028\U00010000'),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text('ab\x7f"'), inner)
                | st.dictionaries(st.text("a\uffff\U00010000", max_size=2), inner)
            ),
        )
    )
    @example({"\U00010000": 1, "\uffff": 2})
    def test_whoever_writes_it_writes_what_the_library_for_it_does(self, value: object) -> None:
        assert canonical(value) == rfc8785.dumps(value)

    @pytest.mark.parametrize("value", [1e16, -(2.0**60), 2.0**53, 1e20, 1e21, 1e22, 5e-324])
    def test_large_floats_survive_too(self, value: float) -> None:
        assert canonical(json.loads(canonical([value]))) == canonical([value])

    def test_survives_a_trip_over_json(self) -> None:
        assert digest_json(json.loads(canonical(record()))) == digest_json(record())


class TestSigning:
    def test_file_is_private_whole_and_never_overwritten(self, tmp_path, root: SigningKey) -> None:
        path = tmp_path / "fr.key"
        root.save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert SigningKey.load(path).public == root.public
        assert [p.name for p in tmp_path.iterdir()] == ["fr.key"]
        with pytest.raises(ConflictError, match="never overwritten"):
            SigningKey.generate().save(path)
        assert SigningKey.load(path).public == root.public

    def test_refuses_a_key_others_can_read(self, tmp_path, root: SigningKey) -> None:
        path = tmp_path / "fr.key"
        root.save(path)
        path.chmod(0o640)
        with pytest.raises(ConfigError, match="read by others") as caught:
            SigningKey.load(path)
        assert "chmod 600" in str(caught.value.fix)

    def test_missing_half_written_or_other_kind(self, tmp_path) -> None:
        with pytest.raises(NotFoundError):
            SigningKey.load(tmp_path / "none")
        path = tmp_path / "x.key"
        path.write_bytes(b"-----BEGIN PRIVATE KEY-----\nMC4CAQ")
        path.chmod(0o600)
        with pytest.raises(ConfigError, match="not a signing key"):
            SigningKey.load(path)
        sealing_path = tmp_path / "y.key"
        SealingKey.generate().save(sealing_path)
        with pytest.raises(ConfigError, match="another kind"):
            SigningKey.load(sealing_path)

    def test_dataclass_and_its_json_carry_the_same_signature(self, root: SigningKey) -> None:
        signed = sign_value(root, record())
        verify_value(root.public, signed)
        verify_value(root.public, json.loads(canonical(signed)))

    @pytest.mark.parametrize("change", [{"seq": 1}, {"body": {"n": 1}}, {"origin": "de-1"}, {"signature": ""}])
    def test_any_change_shows(self, root: SigningKey, change: dict[str, object]) -> None:
        with pytest.raises(VerificationError, match="record 7"):
            verify_value(root.public, replace(sign_value(root, record()), **change), what="record 7")

    @pytest.mark.parametrize("body", [{"f": float("nan")}, {"\ud800": 1}, {"s": "\ud800"}])
    def test_what_cannot_be_signed_is_signed_by_nobody(self, root: SigningKey, body: dict[str, object]) -> None:
        with pytest.raises(VerificationError, match="nobody signed the record: it cannot be written as"):
            verify_value(root.public, record(body=body, signature=root.sign(b"{}")), what="the record")

    def test_every_character_of_a_signature_counts(self, root: SigningKey) -> None:
        signature = root.sign(b"m")
        for i in range(len(signature)):
            other = signature[:i] + ("A" if signature[i] != "A" else "B") + signature[i + 1 :]
            with pytest.raises(VerificationError):
                verify(root.public, b"m", other, what="m")

    def test_not_a_key_is_said_without_a_traceback(self) -> None:
        with pytest.raises(VerificationError, match="not a key"):
            verify("nonsense", b"m", "AA==", what="m")
        assert "not a key" in fingerprint("x")
        assert "not a key" in fingerprint("AAAA")


class TestSealing:
    @pytest.fixture(autouse=True)
    def _small_segments(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sealing, "SEGMENT_BYTES", 64)

    @given(size=st.integers(0, 300))
    def test_each_recipient_opens_it(self, size: int) -> None:
        keys = {site: SealingKey.generate() for site in ("de-1", "uy-1")}
        plain = bytes(i % 251 for i in range(size))
        parts = seal(plain, {site: key.public for site, key in keys.items()}, b"header")
        assert all(open_sealed(parts, site, key, b"header") == plain for site, key in keys.items())

    def test_only_recipients_open_it_and_any_change_shows(self) -> None:
        key, other = SealingKey.generate(), SealingKey.generate()
        parts = seal(bytes(200), {"de-1": key.public}, b"header")
        broken = bytearray(parts.ciphertext)
        broken[70] ^= 1
        segment = 64 + 16
        cases = [
            (parts, "uy-1", other, b"header"),
            (parts, "de-1", other, b"header"),
            (parts, "de-1", key, b"another"),
            (replace(parts, ciphertext=bytes(broken)), "de-1", key, b"header"),
            (replace(parts, ciphertext=parts.ciphertext[:segment]), "de-1", key, b"header"),
            (replace(parts, ciphertext=parts.ciphertext[segment:]), "de-1", key, b"header"),
            (replace(parts, ciphertext=b""), "de-1", key, b"header"),
            (replace(parts, wrapped={"uy-1": parts.wrapped["de-1"]}), "uy-1", key, b"header"),
            (replace(parts, nonce="AAAA"), "de-1", key, b"header"),
            (replace(parts, nonce="?"), "de-1", key, b"header"),
        ]
        for sealed, site, opener, aad in cases:
            with pytest.raises(VerificationError):
                open_sealed(sealed, site, opener, aad)


class TestTrust:
    def test_saved_and_loaded(self, tmp_path, trust: Trust) -> None:
        trust.save(tmp_path / "trust.json")
        assert Trust.load(tmp_path / "trust.json") == trust
        assert set(trust.fingerprints()) == {"log", "server", "partner fr", "site fr-1"}

    def test_bad_files_are_named(self, tmp_path) -> None:
        path = tmp_path / "trust.json"
        path.write_text('{"log_name":')
        with pytest.raises(ConfigError, match="not valid JSON"):
            Trust.load(path)
        path.write_text('{"log_nam": "x"}')
        with pytest.raises(ConfigError, match="log_nam"):
            Trust.load(path)

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            (b"\xff\xfe\x00{", "not UTF-8"),
            (b"[" * 200_000, "nested too deep"),
            (b'{"log_name": ' + b"7" * 5000 + b"}", "a number has 5,000 digits"),
            (b"[]", "not an object"),
            (b'{"log_name": "a", "log_name": "b"}', "key 'log_name' stands twice"),
        ],
    )
    def test_junk_is_named_and_never_half_read(self, tmp_path, data: bytes, said: str) -> None:
        path = tmp_path / "trust.json"
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=said) as caught:
            Trust.load(path)
        assert str(path) in str(caught.value.where)

    def test_a_key_that_stands_twice_is_not_the_last_one(self, tmp_path, trust: Trust) -> None:
        path = tmp_path / "trust.json"
        trust.save(path)
        path.write_text(path.read_text().replace('"log_key":', f'"log_key": "{"A" * 43}=",\n "log_key":'))
        with pytest.raises(ConfigError, match="'log_key' stands twice"):
            Trust.load(path)

    def test_unknown_partner_and_origin(self, trust: Trust) -> None:
        with pytest.raises(VerificationError, match="'xx'"):
            trust.partner_key("xx")
        with pytest.raises(VerificationError, match="xx-1"):
            trust.origin_key("xx-1")


def document(root: SigningKey, **changes: object) -> SignedDocument:
    people = [{"id": "fr/amelie", "name": "Amélie", "roles": ["engineer"], "signing_key": root.public}]
    fields = {
        "kind": "roster", "partner": "fr", "version": 1, "issued_ms": 0, "expires_ms": 1000, "file": "configs/r.yaml",
        "text": json.dumps({"partner": "fr", "people": people}),
    } | changes  # fmt: skip
    return sign_document(root, **fields)


class TestDocuments:
    def test_round_trip_keeps_the_text_word_for_word(self, tmp_path, root: SigningKey, trust: Trust) -> None:
        made = document(root, text="# été\nkey:   value\n")
        save_document(made, tmp_path / "d.json")
        assert load_document(tmp_path / "d.json", trust) == made

    def test_expired_says_when(self, root: SigningKey) -> None:
        check_unexpired(document(root), 999, where="d.json")
        with pytest.raises(VerificationError, match="1970-01-01 00:00:01"):
            check_unexpired(document(root), 1000, where="d.json")

    def test_changed_foreign_and_half_written(self, tmp_path, root: SigningKey, trust: Trust) -> None:
        path = tmp_path / "d.json"
        save_document(replace(document(root), version=2), path)
        with pytest.raises(VerificationError, match="does not hold"):
            load_document(path, trust)
        save_document(document(SigningKey.generate()), path)
        with pytest.raises(VerificationError, match="does not hold"):
            load_document(path, trust)
        path.write_text(path.read_text()[:100])
        with pytest.raises(ConfigError, match="not valid JSON"):
            load_document(path, trust)

    def test_the_consortium_signs_nothing_but_the_quota(self, tmp_path, root: SigningKey, trust: Trust) -> None:
        save_document(document(root, partner="consortium"), tmp_path / "d.json")
        with pytest.raises(VerificationError, match="by a partner"):
            load_document(tmp_path / "d.json", trust)


def spec(**changes: object) -> JobSpec:
    base = JobSpec(
        kind=JobKind.CLEAN, name="j", account="fr", submitter="fr/amelie", purpose="research", inputs=(),
        resources=Resources(gpus=1, walltime_s=60), params={"a": 1}, code_digest="sha256:0",
    )  # fmt: skip
    return replace(base, **changes)


class TestRoster:
    def test_a_signed_spec_is_its_submitters(self, root: SigningKey) -> None:
        rosters = Rosters.of([Roster.parse(document(root))])
        signed = SignedSpec(spec=spec(), signature=root.sign(canonical(spec())))
        assert verify_spec(signed, rosters).id == "fr/amelie"
        with pytest.raises(VerificationError, match="does not hold"):
            verify_spec(replace(signed, spec=spec(params={"a": 2})), rosters)

    def test_strangers_and_foreign_accounts_are_refused(self, root: SigningKey) -> None:
        rosters = Rosters.of([Roster.parse(document(root))])
        for bad, message in ((spec(submitter="fr/zoe"), "no partner's roster"), (spec(account="de"), "account de")):
            with pytest.raises(VerificationError, match=message):
                verify_spec(SignedSpec(spec=bad, signature=root.sign(canonical(bad))), rosters)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a: [", "not valid YAML"),
            ("partner: de\npeople: []", "signed by fr"),
            ("partner: fr", "people"),
            ("partner: fr\npeople: []\nextra: 1", "extra"),
            ("partner: fr\npeople: [{id: de/x, name: X, roles: [engineer], signing_key: k}]", "vouch"),
            ("!!python/object/apply:os.getcwd []", "not valid YAML"),
            ("partner: fr\npeople: [&a {id: fr/x, name: X, roles: [engineer], signing_key: k}, *a]", "aliases"),
            (
                "partner: fr\npeople: [{id: fr/x, name: X, roles: [], signing_key: k}, {id: fr/x, name: Y, roles: [], "
                "signing_key: k}]",
                "twice",
            ),
            ("people: 2024-13-45", "not a roster"),
        ],
    )
    def test_bad_rosters_are_named(self, root: SigningKey, text: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            Roster.parse(document(root, text=text))

    def test_nobody_twice(self, root: SigningKey) -> None:
        with pytest.raises(ConfigError, match="twice"):
            Rosters.of([Roster.parse(document(root))] * 2)


class TestTokens:
    def test_issued_and_checked(self, root: SigningKey) -> None:
        token = issue(root, "fr/amelie", [Role.ENGINEER], "fr", 1000)
        claims = check(root.public, token, 999)
        assert (claims.subject, claims.roles, claims.partner) == ("fr/amelie", (Role.ENGINEER,), "fr")
        with pytest.raises(AuthError, match="expired on 1970-01-01 00:00:01"):
            check(root.public, token, 1000)

    def test_foreign_changed_and_malformed(self, root: SigningKey) -> None:
        token = issue(root, "fr/amelie", [Role.ENGINEER], "fr", 1000)
        bad = [issue(SigningKey.generate(), "x", [], "fr", 1000), "", "a.b", "cst1.é.x", token[:-1], token + "A"]
        bad += [token[:i] + ("A" if token[i] != "A" else "B") + token[i + 1 :] for i in range(0, len(token), 7)]
        for text in bad:
            with pytest.raises(AuthError):
                check(root.public, text, 0)


class TestCode:
    def test_content_and_names_count_and_caches_do_not(self, tmp_path) -> None:
        package, jobs = tmp_path / "p", tmp_path / "j"
        for folder in (package, jobs):
            folder.mkdir()
            (folder / "a.py").write_text("x = 1\n")
        before = code_digest(package, jobs)
        (package / "__pycache__").mkdir()
        (package / "__pycache__" / "a.cpython-311.pyc").write_bytes(b"x")
        assert code_digest(package, jobs) == before
        (jobs / "a.py").write_text("x = 2\n")
        assert code_digest(package, jobs) != before
        with pytest.raises(ConfigError, match="no Python files"):
            code_digest(package, tmp_path / "none")


def test_a_document_is_on_disk_before_it_takes_the_place_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, path = document(SigningKey.generate()), document(SigningKey.generate()), tmp_path / "d.json"
    save_document(old, path)
    synced, fsync = [], os.fsync

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        synced.append((os.fstat(descriptor).st_size, json.loads(path.read_text())["signature"]))

    monkeypatch.setattr(os, "fsync", watched)
    save_document(new, path)
    assert synced == [(path.stat().st_size, old.signature)]
    assert json.loads(path.read_text())["signature"] == new.signature
