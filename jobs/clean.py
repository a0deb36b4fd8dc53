"""The clean leg: cleans this site's raw datasets on its own cluster; text never leaves."""

from __future__ import annotations

import sys

from consortium.client.leg import LegSession, run
from consortium.data import outputs
from consortium.data.between import Peers
from consortium.data.clean import clean_datasets
from consortium.data.cluster import connected
from consortium.data.progress import Meter
from consortium.domain.cleaning import CleanConfig
from consortium.domain.codec import from_json
from consortium.domain.job import READ, JobKind
from consortium.tracking.tracker import Tracker


def program(session: LegSession) -> None:
    """Clean every input that is no evaluation set, then leave datasets, manifest and counts with the site."""
    context = session.context
    config = from_json(CleanConfig, context.params, where="params of the job")
    outputs.expect_inputs(context.inputs, READ[JobKind.CLEAN])
    meter = Meter(session.progress)
    session.progress(phase="connect")
    store, prefix = session.store(), context.store.prefix.rstrip("/")
    peers = Peers(site=context.site, sites=context.peers, exchange=session)
    with connected():
        found = clean_datasets(
            context.inputs, config, store, prefix, shared="shared/clean", peers=peers, progress=meter.over
        )
    made = [
        outputs.clean_output(dataset, found[dataset.id], session.new_id())
        for dataset in context.inputs
        if dataset.id in found
    ]
    stages = list(found.values())
    metrics = outputs.clean_metrics(stages, store)
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
    session.result(outputs=made, manifest_digest=digest, manifest=manifest, metrics=metrics)


if __name__ == "__main__":
    sys.exit(run(program))
