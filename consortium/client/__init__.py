"""The SDK over the server's /v1 API (`Client`, `make_spec`), and in `leg` what a running leg says to its gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consortium.client.api import Client
    from consortium.client.submission import draft_array, draft_spec, finish_spec, make_spec, sign_spec

__all__ = ["Client", "draft_array", "draft_spec", "finish_spec", "make_spec", "sign_spec"]


def __getattr__(name: str) -> Any:
    """Import on first use: a leg needs none of this."""
    if name == "Client":
        from consortium.client.api import Client

        return Client
    if name in __all__:
        from consortium.client import submission

        return getattr(submission, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
