"""The clean leg: cleans this site's raw datasets on its own cluster; text never leaves."""

from __future__ import annotations

import sys

from consortium.client.leg import LegSession, run
from consortium.data import outputs
from consortium.data.clean import clean_dataset
from consortium.data.cluster import connected
from consortium.data.progress import Meter
from consortium.data.screening import CleanConfig
from consortium.domain.codec import from_json
from consortium.domain.data import ArtifactClass
from consortium.tracking.tracker import Tracker


def program(session: LegSession) -> None:
    """Clean every input, then leave datasets, manifest and counts with the site."""
    context = session.context
    config = from_json(CleanConfig, context.params, where="params of the job")
    outputs.expect_inputs(context.inputs, (ArtifactClass.RAW, ArtifactClass.CLEAN))
    meter = Meter(session.progress)
    session.progress(phase="connect")
    store, prefix = session.store(), context.store.prefix.rstrip("/")
    with connected():
        stages = [
            clean_dataset(dataset, config, store, prefix, progress=meter.over(dataset.name))
            for dataset in context.inputs
        ]
    made = [
        outputs.clean_output(dataset, stage, session.new_id())
        for dataset, stage in zip(context.inputs, stages, strict=True)
    ]
    metrics = outputs.clean_metrics(stages)
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
