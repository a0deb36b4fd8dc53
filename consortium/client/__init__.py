"""The SDK over the server's /v1 API, and (in `leg`) what a running leg says to its gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consortium.client.api import Client, sign_spec

__all__ = ["Client", "sign_spec"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from consortium.client import api

        return getattr(api, name)
    raise AttributeError(name)
