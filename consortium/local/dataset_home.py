"""What a partner's people ask at home, where the store's keys are: a dataset's page, its statistic, one document."""

from __future__ import annotations

from typing import Any

from consortium.client.api import Client
from consortium.data.suppression import Statistic
from consortium.domain.data import Dataset
from consortium.domain.ids import partner_of
from consortium.errors import ConsortiumError, NotFoundError
from consortium.local.paths import FederationDir
from consortium.local.steward import private_store, settings_of
from consortium.reports.dataset import Facts, Run, facts_at_home, facts_from_server, statistic_at_home
from consortium.reports.story import Story, stories
from consortium.storage.objects import ObjectStore


def dataset_facts(client: Client, dataset: Dataset, *, samples: int) -> Facts:
    """Return what a dataset's page shows; numbers from the server only, where its private store is not at hand."""
    run, numbers = _run(client, dataset)
    try:
        store = _home(dataset)
    except NotFoundError as fault:
        return facts_from_server(dataset, numbers, fault, run)
    return facts_at_home(dataset, store, client.dataset, samples=samples, run=run)


def document_stories(client: Client, dataset: Dataset, document: str) -> tuple[Story, ...]:
    """Return what happened to a document. Raises NotFoundError where the dataset's home is not here."""
    return stories(dataset, document, _home(dataset), client.dataset)


def dataset_statistic(dataset: Dataset, *, at_least: int) -> Statistic:
    """Return what may leave home of a text dataset. Raises NotFoundError where its home is not here."""
    return statistic_at_home(dataset, _home(dataset), at_least)


def _home(dataset: Dataset) -> ObjectStore:
    try:
        return private_store(settings_of(FederationDir.current(), dataset.site))
    except NotFoundError as fault:
        raise NotFoundError(
            f"the private store of {dataset.site} is not on this machine",
            where=fault.where,
            fix=f"ask on the premises of {partner_of(dataset.site)}: text and annotations never leave them",
        ) from fault


def _run(client: Client, dataset: Dataset) -> tuple[Run | None, dict[str, Any]]:
    """Return the job that made a dataset and the numbers it sent; nothing where that cannot be found out."""
    try:
        traced = client.trace(dataset.id)
        maker = next((each["made_by"] for each in traced["datasets"] if each["id"] == dataset.id), "")
        if not maker:
            return None, {}
        job = client.job(maker)
    except ConsortiumError:
        return None, {}
    numbers = job.result.get(dataset.site, {}).get("metrics", {})
    attempt = job.attempt
    leg = next((leg for leg in attempt.legs if leg.site == dataset.site), None) if attempt else None
    seconds = (leg.updated_ms - attempt.started_ms) / 1000 if attempt and leg else 0.0
    return Run(job=job.id, seconds=max(0.0, seconds), code_digest=job.spec.code_digest), numbers
