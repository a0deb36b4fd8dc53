"""Replaying a run from what a site kept: all of it holds, and every tampering is found and named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from consortium.domain.codec import from_json, to_json
from consortium.domain.job import Epoch, SignedSpec
from consortium.domain.partner import Person, Role
from consortium.domain.pretraining import OuterConfig, PretrainConfig
from consortium.domain.protocol import LegOffer
from consortium.domain.records import ReExecution
from consortium.domain.screening import ScreenRule
from consortium.domain.training import Ruling
from consortium.errors import NotFoundError, VerificationError
from consortium.keys.canonical import digest_json
from consortium.keys.roster import Rosters
from consortium.keys.signing import SigningKey, sign_value, verify_value
from consortium.keys.trust import SiteKeys, Trust
from consortium.site.db import SiteDb
from consortium.site.legs import LegTable, new_leg
from consortium.site.outbox import Outbox
from consortium.storage.objects import ObjectStore
from consortium.train.again import draw, re_execute
from consortium.train.book import RoundBook, cost_bytes
from consortium.train.inner import InnerWorker
from consortium.train.keep import Keep
from consortium.train.outer import from_bytes
from consortium.train.replay import kept_params, replay
from consortium.train.tokens import open_sequences
from tests import builders
from tests.server.test_trace_at_home import _machine
from tests.train.conftest import PARAMS, VOCAB
from tests.train.hub import JOB
from tests.train.test_leg import Site, digests, federation, together

pytestmark = pytest.mark.integration
AUDITED: dict[str, Any] = {
    **PARAMS,
    "outer": {**PARAMS["outer"], "keep_received": -1, "screen": {"clip": 0.5, "quarantine": 2, "cosine": -0.5}},
}
_made: list[Site] = []


@pytest.fixture
def sites(leg: Any) -> list[Site]:
    """Three sites after three rounds, with everything kept; run once, put back by every test that tampers."""
    if not _made:
        found = federation(leg, params=AUDITED)
        found[0].hub.screen = ScreenRule(**AUDITED["outer"]["screen"])
        together(found)
        assert len(digests(found)) == 1
        _made.extend(found)
    return _made


def results(site: Site) -> list[tuple[str, tuple[str, ...]]]:
    return [(one.result, one.who) for one in replay(site.store, JOB, kept_params(site.store, JOB))]


@contextmanager
def changed(store: ObjectStore, key: str, data: bytes | None) -> Iterator[None]:
    was = store.get(key)
    store.delete(key) if data is None else store.put(key, data)
    try:
        yield
    finally:
        store.put(key, was)


def edited(store: ObjectStore, key: str, change: Any) -> bytes:
    value = json.loads(store.get(key))
    change(value)
    return json.dumps(value).encode()


VERIFIED: list[tuple[str, tuple[str, ...]]] = [("verified", ())] * 3


def test_every_site_recomputes_the_whole_run_at_home(sites):
    for site in sites:
        found = replay(site.store, JOB, kept_params(site.store, JOB))
        assert [(one.result, one.what, one.who) for one in found] == [("verified", (), ())] * 3
        assert found[-1].outer_digest == site.final.digest
    clips = [p.clip for r in (1, 2, 3) for p in sites[0].hub.rounds[r].certificate.contributions]
    assert any(float.fromhex(clip) < 1 for clip in clips), "the run clipped, so the standing mattered"


def test_a_flipped_bit_in_a_contribution_is_found(sites):
    store = sites[0].store
    key = next(key for key in store.list(f"jobs/{JOB}/rounds/2/received/"))
    data = bytearray(store.get(key))
    data[5] ^= 1
    with changed(store, key, bytes(data)):
        found = replay(store, JOB, kept_params(store, JOB))
        assert [one.result for one in found] == ["verified", "differs", "verified"]
        assert found[1].who == ("kept",)
        assert "hash to" in found[1].what[0]
        assert found[2].what == ("the momentum it starts from is this site's own word",)
    assert results(sites[0]) == VERIFIED


def test_another_certificate_is_the_servers_word(sites):
    store, key = sites[1].store, f"jobs/{JOB}/rounds/2/round.json"

    def heavier(value: Any) -> None:
        value["certificate"]["contributions"][0]["weight"] = (0.5).hex()

    with changed(store, key, edited(store, key, heavier)):
        assert results(sites[1])[1] == ("differs", ("server",))
    with changed(store, key, edited(store, key, lambda value: value["certificate"]["standing"].update(norms=[]))):
        found = replay(store, JOB, kept_params(store, JOB))[1]
        assert (found.result, found.who) == ("differs", ("server",))
    assert results(sites[1]) == VERIFIED


def test_a_site_that_published_another_outer_state_is_named(sites):
    store, key = sites[0].store, f"jobs/{JOB}/rounds/3/round.json"
    with changed(store, key, edited(store, key, lambda value: value["outer_digests"].update({"uy-1": "sha256:00"}))):
        assert results(sites[0])[2] == ("differs", ("uy-1",))


def test_a_wrong_outer_state_at_home_is_told_from_the_recomputed_one(sites):
    store, keep = sites[0].store, Keep(sites[0].store, JOB)
    size = keep.measured(0)[0].layout.size
    wrong = store.put_addressed(f"jobs/{JOB}/outer/2", np.ones(size, dtype="<f4").tobytes(), ".f32")
    key = f"jobs/{JOB}/outer/2/state.json"
    data = edited(store, key, lambda value: value.update(vector={"key": wrong.key, "digest": wrong.digest}))
    with changed(store, key, data):
        assert results(sites[0]) == [("verified", ()), ("differs", ("kept",)), ("verified", ())]
    with changed(store, wrong.key, b"\0" * 4 * size), changed(store, key, data):
        assert results(sites[0])[1] == ("differs", ("kept",))


def test_what_is_missing_is_named_and_the_rest_is_still_replayed(sites):
    store = sites[2].store
    (gone, _) = sorted(store.list(f"jobs/{JOB}/rounds/1/received/"))
    with changed(store, gone, None):
        found = replay(store, JOB, kept_params(store, JOB))
        assert [one.result for one in found] == ["cannot", "verified", "verified"]
        assert gone.split("/")[-1].removesuffix(".bin") in found[0].what[0]
    with changed(store, f"jobs/{JOB}/rounds/2/round.json", None):
        found = replay(store, JOB, kept_params(store, JOB))
        assert [one.result for one in found] == ["verified", "cannot", "verified"]
        assert "may clip by" in found[2].what[-1]
    key = f"jobs/{JOB}/rounds/3/round.json"
    with changed(store, key, edited(store, key, lambda value: value.update(outer_digests={}))):
        assert "no digest that a site published" in replay(store, JOB, kept_params(store, JOB))[2].what[0]
    with pytest.raises(NotFoundError, match="no round"):
        replay(store, "job-0000000000000000000000000b", OuterConfig(rounds=1, inner_steps=1))


def test_what_one_site_did_not_keep_is_read_where_another_did_and_undamaged(sites):
    here, other, third = sites
    params, beside = kept_params(here.store, JOB), {site.context.site: site.store for site in (other, third)}
    (one, two) = sorted(here.store.list(f"jobs/{JOB}/rounds/1/received/"))
    with changed(here.store, one, None), changed(here.store, two, None):
        assert [found.result for found in replay(here.store, JOB, params)] == ["cannot", "verified", "verified"]
        found = replay(here.store, JOB, params, beside=beside)
        assert [(one.result, one.what, one.who) for one in found] == [("verified", (), ())] * 3
        own = sorted(key for key in other.store.list(f"jobs/{JOB}/rounds/1/") if key.endswith((".f32", ".code")))
        (mine,) = [key for key in own if key.split("/")[-1].split(".")[0] in one + two]
        with changed(other.store, mine, b"\0" * 16):  # the third site received it
            assert replay(here.store, JOB, params, beside=beside)[0].result == "verified"
            found = replay(here.store, JOB, params, beside={other.context.site: other.store})
            assert found[0].result == "cannot"
            assert f"the contribution of {other.context.site}" in found[0].what[0]


def test_other_settings_than_the_jobs_do_not_verify(sites):
    store = sites[0].store
    params = kept_params(store, JOB)
    assert {one.result for one in replay(store, JOB, replace(params, lr=0.71))} == {"differs"}
    assert replay(store, JOB, replace(params, screen=ScreenRule()))[0].who == ("server",)


def test_inner_steps_done_again_give_the_same_bits(sites, tmp_path):
    site = sites[0]
    params = PretrainConfig.of(site.context.params)
    for number in (1, 3):
        text = open_sequences(site.store, site.context.inputs, params.model.context, VOCAB)
        keep, worker = Keep(site.store, JOB), InnerWorker(params, VOCAB, text, site.context.site)
        done = re_execute(keep, worker, params, number, worker.layout.size)
        assert (done.same_bits, done.distance, done.holds) == (True, 0.0, True)
    other = replace(params, seed=8)
    worker = InnerWorker(other, VOCAB, text, site.context.site)
    wrong = re_execute(keep, worker, other, 3, worker.layout.size)
    assert not wrong.holds, "other data, and it shows"
    assert wrong.distance > wrong.tolerance


def test_steps_that_no_site_of_the_job_does_before_a_round_are_no_steps(sites, tmp_path):
    """A site may write into its own store that the parameters it contributed were there before the round began."""
    site, key = sites[0], f"jobs/{JOB}/outer/1/state.json"
    params, keep = PretrainConfig.of(site.context.params), Keep(site.store, JOB)
    size, whole = keep.origin(1).layout.size, site.store.get(key)
    before, made = keep.outer(1, size), keep.contribution(2, size)
    local = keep._put_vector(f"jobs/{JOB}/outer/1", before.outer - from_bytes(made.data, size, what="it"))
    forged = {
        "local": {"key": local.key, "digest": local.digest}, "steps": made.steps, "loss": (0.0).hex(),
        "ahead_tokens": made.tokens, "ahead_position": made.position,
    }  # fmt: skip
    text = open_sequences(site.store, site.context.inputs, params.model.context, VOCAB)
    worker = InnerWorker(params, VOCAB, text, site.context.site)
    site.store.put(key, json.dumps(json.loads(whole) | forged).encode())
    try:
        with pytest.raises(VerificationError, match="were done already"):
            re_execute(keep, worker, params, 2, size)
    finally:
        site.store.put(key, whole)


def test_only_as_many_rounds_of_peers_are_retained_as_asked(sites):
    store, book = sites[0].store, RoundBook(sites[0].store, "job-0000000000000000000000000c")
    for number in (1, 2, 3, 4):
        book.save_received(number, bytes([number]) * 8)
        book.retain(number, 2)
    kept = sorted(key.split("/")[3] for key in store.list("jobs/job-0000000000000000000000000c/"))
    assert kept == ["3", "4"]
    book.retain(6, 2)
    assert not list(store.list("jobs/job-0000000000000000000000000c/")), "rounds that nothing counted in lie between"
    assert cost_bytes(100, -1, 3, 4_000) == 800_000
    assert cost_bytes(100, 10, 3, 4_000) == 80_000
    assert to_json(kept_params(store, JOB))["keep_received"] == -1


def test_the_command_line_replays_at_home_without_a_server(sites, s3, call, tmp_path):
    store = next(site.store for site in sites if site.context.site == "fr-1")
    _machine(tmp_path, s3, store)
    outcome = call("audit", "replay", JOB, "--json", home=tmp_path)
    assert outcome.code == 0, outcome.err
    assert [(row["round"], row["result"]) for row in json.loads(outcome.out)["fr-1"]] == [
        (1, "verified"), (2, "verified"), (3, "verified")
    ]  # fmt: skip
    key = next(key for key in store.list(f"jobs/{JOB}/rounds/2/received/"))
    with changed(store, key, b"\0" * 16):
        outcome = call("audit", "replay", JOB, home=tmp_path)
    assert outcome.code == 7
    assert "1 of the rounds differ, first round 2 at fr-1" in outcome.err
    assert [line.split()[2] for line in outcome.out.splitlines()[1:]] == ["verified", "differs", "verified"]
    for elsewhere in ("de-1", "/", "*"):
        outcome = call("audit", "replay", JOB, "--site", elsewhere, home=tmp_path)
        assert outcome.code == 5
        assert f"site '{elsewhere}' is not on this machine" in outcome.err


@pytest.fixture
def machine(sites, s3, tmp_path) -> tuple[Site, SigningKey, Outbox]:
    """France's own machine after the training: settings, signing key, and the book of its legs."""
    site = next(site for site in sites if site.context.site == "fr-1")
    _machine(tmp_path, s3, site.store)
    home = tmp_path / "current" / "sites" / "fr-1"
    settings, key = json.loads((home / "config.json").read_text()), SigningKey.generate()
    key.save(home / "signing.key")
    (home / "config.json").write_text(json.dumps(settings | {"signing_key_path": str(home / "signing.key")}))
    context, db = site.context, SiteDb(home)
    offer = LegOffer(
        leg=context.leg, job=JOB, attempt=context.attempt, attempt_number=1, epoch=Epoch(incarnation=1, counter=1),
        site="fr-1", peers=context.peers, nodes={"n0": 1}, inputs=context.inputs,
        spec=SignedSpec(spec=builders.spec("pretrain", params=context.params), signature=""),
    )  # fmt: skip
    with db.write() as write:
        LegTable(db).add(new_leg(offer), 0, write)
    return site, key, Outbox(db, "fr-1", key)


def test_the_command_line_does_a_rounds_steps_again_and_site_and_auditor_sign_what_came_out(machine, call, tmp_path):
    _, site_key, outbox = machine
    carla = SigningKey.generate()
    carla.save(tmp_path / "carla.key")
    asked = ("--samples", "2", "--seed", "root of the log")
    done = call(
        "audit", "re-execute", JOB, *asked, "--auditor", "uy/carla", "--key", str(tmp_path / "carla.key"), home=tmp_path
    )
    assert done.code == 0, done.err
    assert done.out.count("re-executed") == done.out.count("the same bits") == 2
    records = outbox.after(-1)
    drawn = draw("root of the log", JOB, "fr-1", (3, 2, 1), 2)
    assert len(drawn) == 2
    for number, record in zip(drawn, records, strict=True):
        verify_value(site_key.public, record, what="the site's record")
        found = from_json(ReExecution, record.body)
        verify_value(carla.public, found, what="what the auditor saw")
        assert (found.round, found.drawn, found.by, found.holds) == (number, drawn, "uy/carla", True)
    alone = call("audit", "re-execute", JOB, "--round", "1", "--no-record", home=tmp_path)
    assert (alone.code, len(outbox.after(-1))) == (0, 2)
    assert call("audit", "re-execute", JOB, "--samples", "2", home=tmp_path).code == 2, "drawn by nothing"


def boast(value: Any) -> None:
    for commit in value["commits"]:
        commit["tokens"] *= 10


def test_a_contribution_that_its_steps_do_not_come_to_fails_with_7_and_is_on_record(machine, call, tmp_path):
    site, _, outbox = machine
    again = ("audit", "re-execute", JOB, "--round", "2", "--json")
    state, root = f"jobs/{JOB}/outer/1/state.json", f"jobs/{JOB}/rounds/2"
    mine = f"{root}/contribution.json"

    def elsewhere(value: Any) -> None:
        value["position"] += 40

    with changed(site.store, state, edited(site.store, state, elsewhere)):
        assert "not where they end" in call(*again, home=tmp_path).err
        with changed(site.store, mine, edited(site.store, mine, elsewhere)):
            told = call(*again, home=tmp_path)
    assert (told.code, json.loads(told.out)[0]["result"]) == (7, "differs")
    assert "relative distance" in told.err, "steps on other text"
    sent = json.loads(site.store.get(mine))["vector"]["key"]
    with changed(site.store, sent, b"\0" * len(site.store.get(sent))):
        assert call(*again, home=tmp_path).code == 7, "other bytes"
    last = f"jobs/{JOB}/rounds/3/contribution.json"
    other = json.loads(site.store.get(last))["vector"]

    def swap(value: Any) -> None:
        value["vector"] = other

    with changed(site.store, mine, edited(site.store, mine, swap)):
        told = call(*again, home=tmp_path)
    assert (told.code, "committed was" in told.err) == (7, True), "another contribution put in its place"
    book = edited(site.store, f"{root}/round.json", boast)
    with changed(site.store, f"{root}/round.json", book):
        told = call(*again, home=tmp_path)
    assert (told.code, "it is made of" in told.err) == (7, True), "more tokens than its steps read"
    records = [from_json(ReExecution, record.body) for record in outbox.after(-1)]
    assert [record.holds for record in records] == [False] * 5
    with changed(site.store, state, None):
        assert call(*again, home=tmp_path).code == 5, "nothing to begin from"


def test_with_trusted_keys_unsigned_words_do_not_pass(sites):
    store = sites[0].store
    keys = {site: SiteKeys(signing=SigningKey.generate().public, sealing="") for site in ("de-1", "fr-1", "uy-1")}
    trust = Trust(log_name="log", log_key="", server_key=SigningKey.generate().public, partners={}, sites=keys)
    found = replay(store, JOB, kept_params(store, JOB), trust=trust)
    assert [one.result for one in found] == ["differs"] * 3
    assert "signature of de-1's commit" in found[0].what[0]
    assert found[0].who == ("kept",), "a leg's gateway lets no unsigned word in: it is not the server's"


def test_a_ruling_whose_admin_has_left_since_accuses_nobody(sites):
    store, server, bruno = sites[0].store, SigningKey.generate(), SigningKey.generate()
    keys = {site: SigningKey.generate() for site in ("de-1", "fr-1", "uy-1")}
    trust = Trust(
        log_name="log", log_key="", server_key=server.public, partners={},
        sites={site: SiteKeys(signing=key.public, sealing="") for site, key in keys.items()},
    )  # fmt: skip
    ruling = sign_value(
        bruno, Ruling(job=JOB, round=2, site="de-1", action="readmit", reason="repaired", by="fr/bruno")
    )
    admin = Person(id="fr/bruno", name="Bruno", roles=(Role.ADMIN,), signing_key=bruno.public)

    def told(rosters: Rosters, *verified: str) -> list[tuple[str, int, tuple[str, ...]]]:
        params = kept_params(store, JOB)
        found = replay(store, JOB, params, trust=trust, rosters=rosters, verified=verified)
        return [(one.result, len([what for what in one.what if "no longer" in what]), one.who) for one in found]

    with ExitStack() as stack:
        for number in (1, 2, 3):
            current = RoundBook(store, JOB).round(number)
            signed = replace(
                current,
                commits=tuple(sign_value(keys[one.site], one) for one in current.commits),
                verdicts=tuple(sign_value(keys[one.judge], one) for one in current.verdicts),
                certificate=sign_value(server, current.certificate),
                rulings=(ruling,) if number > 1 else (),
            )
            data = json.dumps(to_json(signed)).encode()
            stack.enter_context(changed(store, f"jobs/{JOB}/rounds/{number}/round.json", data))
        fine = [("verified", 0, ())] * 3
        assert told(Rosters({admin.id: admin})) == fine
        assert told(Rosters({})) == [fine[0], ("cannot", 1, ()), ("cannot", 1, ())]
        assert told(Rosters({}), digest_json(ruling)) == fine
    assert results(sites[0]) == VERIFIED
