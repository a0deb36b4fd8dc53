"""From keys on the command line to specs: arrays, deadlines, throughput, and drafts that nobody can submit."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from consortium.client.submission import draft_array, draft_spec, finish_spec, make_spec
from consortium.errors import ConfigError, NotFoundError, UsageError
from consortium.keys.signing import SigningKey
from tests.builders import dataset, new_id, spec


class Registry:
    """The one thing that a draft asks the server: what a dataset's name stands for."""

    def __init__(self):
        self.asked = []

    def dataset(self, name):
        self.asked.append(name)
        return dataset(name, number=len(name))


def draft(*overrides, kind="clean"):
    return draft_spec(Registry(), kind, ["inputs=[laws-fr]", *overrides], person="fr/amelie")


def members(*overrides, size=3, limit=0, kind="pretrain"):
    return draft_array(Registry(), kind, ["inputs=[laws-fr]", *overrides], size=size, limit=limit, person="fr/amelie")


def test_a_draft_cannot_be_submitted_and_a_finished_one_is_new_each_time():
    one = draft()
    assert one.nonce == ""
    key = SigningKey.generate()
    assert finish_spec(one, key).spec.nonce != finish_spec(one, key).spec.nonce
    assert make_spec(Registry(), "clean", ["inputs=[laws-fr]"], person="fr/amelie", key=key).spec.nonce


def test_what_is_asked_for_stands_in_the_spec():
    first = new_id("job", 1)
    spec = draft(f"after=[{first}]", "deadline=6h", "preemptible=false", "checkpoint_every_s=600",
                 "flavors=[h100-sxm,a100-80g:0.4]")  # fmt: skip
    assert spec.after == (first,)
    assert abs(spec.deadline_ms - (time.time() + 6 * 3600) * 1000) < 60_000
    assert (spec.preemptible, spec.checkpoint_every_s) == (False, 600)
    assert spec.resources.flavors == ("h100-sxm", "a100-80g")
    assert spec.resources.throughput == {"h100-sxm": "1", "a100-80g": "0.4"}
    assert draft("flavors=[h100-sxm]").resources.throughput == {}


class Trained(Registry):
    """A registry where jobs of these kinds and names succeeded, oldest first."""

    def __init__(self, *named):
        super().__init__()
        self.named = named

    def jobs(self, *, states, limit=1000):
        assert states == ["succeeded"]
        found = [
            SimpleNamespace(id=new_id("job", number), spec=spec(kind, name=name))
            for number, (kind, name) in enumerate(self.named)
        ]
        return found[-limit:]


def test_a_model_is_named_by_its_id_or_by_the_name_of_the_latest_training_that_succeeded():
    server = Trained(("pretrain", "laws"), ("pretrain", "laws"), ("clean", "laws"))
    named = [
        draft_spec(server, "evaluate", ["inputs=[laws-fr]", f"model={model}"], person="fr/amelie").model
        for model in ("laws", new_id("job", 7))
    ]
    assert named == [new_id("job", 1), new_id("job", 7)]


def test_a_model_is_known_by_name_after_a_thousand_other_jobs():
    server = Trained(("pretrain", "laws"), *[("clean", "laws")] * 1_500)
    drafted = draft_spec(server, "evaluate", ["inputs=[laws-fr]", "model=laws"], person="fr/amelie")
    assert drafted.model == new_id("job", 0)


@pytest.mark.parametrize(
    ("server", "fix"),
    [(Trained(("pretrain", "laws"), ("clean", "lawz")), "did you mean 'laws'?"), (Trained(), "train one first")],
)
def test_a_model_that_nobody_trained_is_named(server, fix):
    with pytest.raises(NotFoundError, match="no pretrain job named 'lawz' has succeeded") as fault:
        draft_spec(server, "evaluate", ["inputs=[laws-fr]", "model=lawz"], person="fr/amelie")
    assert (fault.value.where, fault.value.fix) == ("model=lawz", fix)


def test_the_homes_of_the_inputs_are_signed_for_where_no_sites_are_named():
    class Homes(Registry):
        def dataset(self, name):
            return dataset(name, name[-2:] + "-1", number=len(self.asked))

    inputs = "inputs=[tokens-uy,tokens-de,laws-de]"
    drafted = draft_spec(Homes(), "pretrain", [inputs], person="fr/amelie")
    assert drafted.sites == ("de-1", "uy-1")
    named = draft_spec(Homes(), "pretrain", [inputs, "sites=[de-1,fr-1,uy-1]"], person="fr/amelie")
    assert named.sites == ("de-1", "fr-1", "uy-1")
    assert {spec.sites for spec in members("min_sites=1")} == {("fr-1",)}


@pytest.mark.parametrize(
    ("text", "unix_ms"),
    [("2126-11-23T08:00", 4951094400000), ("2126-11-23T08:00+02:00", 4951087200000), ("2126-11-23", 4951065600000)],
)
def test_a_deadline_is_utc_unless_it_says_otherwise(text, unix_ms):
    assert draft(f"deadline={text}").deadline_ms == unix_ms


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("deadline=tomorrow", "neither a time"),
        ("after=[laws]", "no job id"),
        ("flavors=[h100-sxm:fast]", "decimal number"),
        ("flavors=[h100-sxm:0]", "0.001 to 1000"),
        ("flavors=[h100-sxm:1,h100-sxm:2]", "each given once"),
        ("checkpoint_every_s=-1", "checkpoint_every_s must be"),
    ],
)
def test_what_makes_no_sense_is_said_with_its_override(override, what):
    with pytest.raises(ConfigError, match=what) as fault:
        draft(override)
    assert override in str(fault.value.where)


def test_members_of_an_array_have_names_and_indices_of_their_own():
    found = members(limit=2)
    assert [spec.name for spec in found] == ["pretrain-0", "pretrain-1", "pretrain-2"]
    assert [spec.array.index for spec in found] == [0, 1, 2]
    assert {(spec.array.id, spec.array.size, spec.array.limit) for spec in found} == {(found[0].array.id, 3, 2)}


def test_the_index_stands_for_itself_in_overrides():
    registry = Registry()
    found = draft_array(registry, "pretrain", ["inputs=[laws-fr]", "seed=%a", "name=try-%a-of-3"], size=3,
                        person="fr/amelie")  # fmt: skip
    assert [spec.params["seed"] for spec in found] == [0, 1, 2]
    assert [spec.name for spec in found] == ["try-0-of-3", "try-1-of-3", "try-2-of-3"]
    assert registry.asked == ["laws-fr"], "a name is looked up once"


@pytest.mark.parametrize(("size", "limit"), [(0, 0), (1001, 0), (3, 4), (3, -1)])
def test_an_array_has_bounds(size, limit):
    with pytest.raises(UsageError, match=r"array has|limit must be"):
        members(size=size, limit=limit)
