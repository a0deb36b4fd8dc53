"""A leg whose job goes on from an earlier job's model: it is round 0, and what does not fit is refused before it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from consortium.domain.codec import to_json
from consortium.domain.pretraining import PretrainConfig
from consortium.errors import UsageError
from consortium.train.inner import InnerWorker
from consortium.train.keep import Keep, Origin, OuterState
from consortium.train.outer import vector_digest
from tests.train.conftest import PARAMS, VOCAB
from tests.train.hub import JOB, Hub
from tests.train.test_leg import Site
from tests.train.test_model import text

pytestmark = pytest.mark.integration
EARLIER = JOB[:-1] + "c"
GOING_ON = PARAMS | {"start": {"job": EARLIER}, "outer": {"rounds": 1, "inner_steps": 2}}


@pytest.mark.parametrize("digest", ["", "sha256:11"])
def test_the_first_site_begins_with_the_earlier_model_or_says_why_not(leg, digest):
    context, store = leg("fr-1", ("fr-1",), params=GOING_ON)
    params = PretrainConfig.of(PARAMS)
    inner = InnerWorker(params, VOCAB, text(), "fr-1")
    vector = inner.run(inner.initial(), position=0, step=0, count=3).local
    origin = Origin(
        model=to_json(params.model),
        vocab_size=VOCAB,
        tokenizer_digest=digest,
        names=inner.layout.names,
        shapes=inner.layout.shapes,
    )
    state = OuterState(
        round=2,
        digest=vector_digest(vector),
        outer=vector,
        momentum=np.ones_like(vector),
        position=40,
        tokens=640,
        moments=inner.moments(),
    )
    Keep(store, EARLIER).save_outer(state, origin)
    site = Site(Hub(("fr-1",)), replace(context, job=JOB), store)
    site.live()
    if digest:
        assert isinstance(site.fault, UsageError)
        assert "its tokenizer is sha256:11" in site.fault.what
        assert Keep(store, JOB).rounds() == []
        return
    assert site.fault is None
    begun = Keep(store, JOB).outer(0, vector.size)
    np.testing.assert_array_equal(begun.outer, vector)
    assert (begun.position, begun.tokens, begun.moments, float(begun.momentum.max())) == (0, 0, None, 0.0)
    assert Keep(store, JOB).rounds() == [0, 1]
