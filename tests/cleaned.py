"""One dataset cleaned by itself, by the stage that cleans many; what the quality rules measure in one text."""

from __future__ import annotations

from consortium.data.clean import clean_datasets
from consortium.data.manifest import Stage
from consortium.data.parts import Parts
from consortium.data.quality import EVERY_RULE, QualityConfig, rules_of
from consortium.domain.cleaning import CleanConfig
from consortium.domain.data import Dataset
from consortium.storage.objects import ObjectStore


def clean_dataset(dataset: Dataset, config: CleanConfig, store: ObjectStore, prefix: str) -> Stage:
    return clean_datasets([dataset], config, store, prefix)[dataset.id]


def measured(text: str, language: str) -> dict[str, float]:
    rules, parts = rules_of(QualityConfig(filters=EVERY_RULE), language), Parts(text)
    return {rule.name: rule.measure(parts) for rule in (*rules.single, *rules.ngrams)}
