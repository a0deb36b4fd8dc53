"""Who may do what, and why not: rules compiled to Cedar, decided purely, explained by clause, file and line."""

from __future__ import annotations

from consortium.policy.decide import PolicyBook
from consortium.policy.model import Action, PartnerPolicy, PolicyRules
from consortium.policy.request import (
    Behind,
    Request,
    log_request,
    receive_request,
    release_request,
    requests_for_job,
    requests_for_model,
)

__all__ = [
    "Action",
    "Behind",
    "PartnerPolicy",
    "PolicyBook",
    "PolicyRules",
    "Request",
    "log_request",
    "receive_request",
    "release_request",
    "requests_for_job",
    "requests_for_model",
]
