"""Configs: Hydra groups and signed YAML texts to frozen, validated dataclasses. The only importer of Hydra."""

from __future__ import annotations

from consortium.config.compose import compose_job
from consortium.config.dirs import Dirs, default_dirs
from consortium.config.kinds import ComposedJob, validate_params

__all__ = ["ComposedJob", "Dirs", "compose_job", "default_dirs", "validate_params"]
