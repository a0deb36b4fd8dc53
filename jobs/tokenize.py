"""The tokenize leg: one common tokenizer from thresholded word counts; token shards are written at home.

Run it as `python -P`: this folder on sys.path would put this file in the place of the standard library's `tokenize`.
"""

from __future__ import annotations

import sys

from consortium.client.leg import LegSession, run
from consortium.data import outputs
from consortium.data import tokenize as stage_of
from consortium.data.cluster import connected
from consortium.data.progress import Meter
from consortium.domain.codec import from_json
from consortium.domain.job import READ, JobKind
from consortium.domain.tokenizing import TokenizeConfig
from consortium.tracking.tracker import Tracker


def program(session: LegSession) -> None:
    """Count, agree, encode; then leave datasets, manifest and counts with the site."""
    context = session.context
    config = from_json(TokenizeConfig, context.params, where="params of the job")
    outputs.expect_inputs(context.inputs, READ[JobKind.TOKENIZE])
    meter = Meter(session.progress)
    session.progress(phase="connect")
    store, prefix = session.store(), context.store.prefix.rstrip("/")
    with connected():
        counts = stage_of.count_datasets(context.inputs, config, store, progress=meter.over("all inputs"))
        session.progress(phase="agree", words=len(counts))
        tokenizer = stage_of.agree_on_tokenizer(counts, context.site, context.peers, session, config)
        vocabulary = stage_of.keep_tokenizer(tokenizer, store, prefix)
        stages = [
            stage_of.tokenize_dataset(dataset, vocabulary, config, store, prefix, progress=meter.over(dataset.name))
            for dataset in context.inputs
        ]
    made = [
        output
        for dataset, stage in zip(context.inputs, stages, strict=True)
        for output in outputs.token_outputs(dataset, stage, vocabulary, session.new_id)
    ]
    metrics = outputs.token_metrics(stages, vocabulary)
    if context.tracking_run:
        session.progress(phase="track")
        tracked = outputs.track(
            Tracker(session.tracking_uri, session.token),
            context.tracking_run,
            params=context.params,
            metrics=metrics,
            inputs=context.inputs,
            outputs=made,
            warn=lambda text: print(text, file=sys.stderr),
        )
        metrics["tracked"] = int(tracked)
    manifest, digest = outputs.whole_manifest(stages)
    session.result(
        outputs=made,
        manifest_digest=digest,
        manifest=manifest,
        metrics={**metrics, "tokenizer_digest": vocabulary.digest},
    )


if __name__ == "__main__":
    sys.exit(run(program))
