"""What the data jobs hand back: datasets, the manifest, numbers for people, and the same numbers to MLflow."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from consortium.data import profile
from consortium.data.counts import Counts, total
from consortium.data.manifest import Stage
from consortium.data.profile import Profile
from consortium.data.suppression import AT_LEAST, clean_numbers
from consortium.data.tokenize import Vocabulary
from consortium.domain.codec import from_json
from consortium.domain.data import (
    CLEAN_SUFFIX,
    HELD_OUT_SUFFIX,
    TOKENS_SUFFIX,
    ArtifactClass,
    Dataset,
    base_name,
    inherited,
)
from consortium.errors import ConsortiumError, UsageError
from consortium.keys.canonical import digest_json
from consortium.storage.objects import ObjectStore
from consortium.tracking.tracker import Tracker


def expect_inputs(datasets: Sequence[Dataset], allowed: tuple[ArtifactClass, ...]) -> None:
    """Raise UsageError unless there are inputs and all are of an allowed class."""
    names = " or ".join(kind.value for kind in allowed)
    if not datasets:
        raise UsageError("no input lives at this site", fix=f"name a {names} dataset in the job's inputs")
    for dataset in datasets:
        if dataset.artifact_class not in allowed:
            raise UsageError(f"{dataset.name} is {dataset.artifact_class.value}, not {names}", where=dataset.id)


def clean_output(source: Dataset, stage: Stage, new_id: str) -> Dataset:
    """Return the clean dataset that a stage made of `source`."""
    return Dataset(
        id=new_id,
        name=base_name(source.name) + CLEAN_SUFFIX,
        version=source.version,
        site=source.site,
        territory=source.territory,
        artifact_class=ArtifactClass.CLEAN,
        languages=tuple(stage.manifest["config"]["languages"]),
        licence=source.licence,
        source=source.source,
        shards=stage.outputs["clean"],
        categories=source.categories,
        parents=(source.id,),
        manifest_digest=stage.manifest_digest,
        held_out=source.held_out,
        attributes={"manifest_key": stage.manifest_key},
        about=inherited([source.about]),
    )


def token_outputs(
    source: Dataset, stage: Stage, vocabulary: Vocabulary, new_id: Callable[[], str]
) -> tuple[Dataset, ...]:
    """Return the training and the held-out token datasets that a stage made of `source`; an empty one is left out."""
    return tuple(
        Dataset(
            id=new_id(),
            name=f"{base_name(source.name)}{suffix}",
            version=source.version,
            site=source.site,
            territory=source.territory,
            artifact_class=ArtifactClass.TOKENS,
            languages=source.languages,
            licence=source.licence,
            source=source.source,
            shards=stage.outputs[split],
            categories=source.categories,
            parents=(source.id,),
            manifest_digest=stage.manifest_digest,
            held_out=source.held_out or split == "heldout",
            attributes={**vocabulary.attributes(), "manifest_key": stage.manifest_key},
            about=inherited([source.about]),
        )
        for split, suffix in (("tokens", TOKENS_SUFFIX), ("heldout", HELD_OUT_SUFFIX))
        if stage.outputs.get(split)
    )


def whole_manifest(stages: Sequence[Stage]) -> tuple[dict[str, Any], str]:
    """Return the leg's manifest and its digest: the only stage's own, or one that lists several."""
    if len(stages) == 1:
        return stages[0].manifest, stages[0].manifest_digest
    combined = {"stages": [stage.manifest_digest for stage in stages], "manifests": [s.manifest for s in stages]}
    return combined, digest_json(combined)


def clean_metrics(
    stages: Sequence[Stage], store: ObjectStore | None = None, *, at_least: int = AT_LEAST
) -> dict[str, int]:
    """Return the counts of clean stages as flat numbers: `documents_in`, `removed.length.min`, `edits.redact.email`.

    They leave home, for the server, the ledger and MLflow: `suppression.clean_numbers` hides small cells. With the
    private `store`, where profiles are, they tell of lengths too.
    """
    counts = total(from_json(Counts, stage.manifest["counts"], where="counts of a manifest") for stage in stages)
    profiles = [] if store is None else [profiles_of(stage.manifest, stage.manifest_key, store) for stage in stages]
    known = [pair for pair in profiles if pair is not None]
    if store is None or len(known) < len(stages):
        return clean_numbers(counts, at_least=at_least)
    before, after = (profile.total(pair[side] for pair in known) for side in (0, 1))
    return clean_numbers(counts, before, after, at_least)


def profiles_of(manifest: Mapping[str, Any], manifest_key: str, store: ObjectStore) -> tuple[Profile, Profile] | None:
    """Return the profiles of what came into a clean stage and of what stayed; None where it has none."""
    digest = str(manifest.get("profiles", ""))
    if not digest:
        return None
    key = f"{manifest_key.partition('/manifests/')[0]}/profiles/{digest.removeprefix('sha256:')}.json"
    both = json.loads(store.get(key, digest=digest))
    return from_json(Profile, both["before"], where=key), from_json(Profile, both["after"], where=key)


def token_metrics(stages: Sequence[Stage], vocabulary: Vocabulary) -> dict[str, int]:
    """Return the counts of tokenize stages as flat numbers."""
    found = {"vocab_size": vocabulary.size}
    for counts in (stage.manifest["counts"] for stage in stages):
        for name, number in counts.items():
            found[name] = found.get(name, 0) + int(number)
    return found


def track(
    tracker: Tracker,
    run: str,
    *,
    params: dict[str, Any],
    metrics: dict[str, int],
    inputs: Sequence[Dataset],
    outputs: Sequence[Dataset],
    warn: Callable[[str], object],
) -> bool:
    """Log a finished data job to its MLflow run. Returns False, after `warn`, where that fails.

    MLflow is not evidence, the manifest is: a finished stage does not fail because the tracking server is down, or
    because the partner's policy keeps its numbers at home.
    """
    try:
        tracker.log_params(run, params)
        tracker.log_inputs(run, inputs, context="input")
        tracker.log_inputs(run, outputs, context="output")
        tracker.log_metrics(run, metrics)
    except ConsortiumError as fault:
        warn(f"the run could not be tracked: {fault.render()}")
        return False
    return True
