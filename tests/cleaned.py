"""One dataset cleaned by itself, by the stage that cleans many."""

from __future__ import annotations

from consortium.data.clean import clean_datasets
from consortium.data.manifest import Stage
from consortium.domain.cleaning import CleanConfig
from consortium.domain.data import Dataset
from consortium.storage.objects import ObjectStore


def clean_dataset(dataset: Dataset, config: CleanConfig, store: ObjectStore, prefix: str) -> Stage:
    return clean_datasets([dataset], config, store, prefix)[dataset.id]
