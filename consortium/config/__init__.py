"""Configs: Hydra groups and signed YAML texts to frozen, validated dataclasses. The only importer of Hydra."""

from __future__ import annotations

from consortium.config.build import nearest
from consortium.config.compose import compose_job
from consortium.config.dirs import Dirs, default_dirs
from consortium.config.federation import (
    ConfigFile,
    FederationConfig,
    load_federation,
    parse_policy_text,
    parse_quota_text,
    parse_site_text,
)
from consortium.config.kinds import ComposedJob, validate_params
from consortium.config.quota import QuotaConfig
from consortium.config.scenario import Scenario
from consortium.config.scenarios import load_scenario, scenario_names
from consortium.config.schemas import PartnerConfig, PersonConfig, ServerTuning, SiteConfig

__all__ = [
    "ComposedJob",
    "ConfigFile",
    "Dirs",
    "FederationConfig",
    "PartnerConfig",
    "PersonConfig",
    "QuotaConfig",
    "Scenario",
    "ServerTuning",
    "SiteConfig",
    "compose_job",
    "default_dirs",
    "load_federation",
    "load_scenario",
    "nearest",
    "parse_policy_text",
    "parse_quota_text",
    "parse_site_text",
    "scenario_names",
    "validate_params",
]
