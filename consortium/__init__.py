"""Several states pool GPU clusters, data and people to train models together; each keeps control of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consortium.client.api import Client

__version__ = "0.1.0"
PROTOCOL_VERSION = 2
"""Version of the messages between server, agents and clients; an agent one version behind keeps working.

2: an offer says who vouches for each input's description, and an agent takes no input without.
"""

__all__ = ["PROTOCOL_VERSION", "Client", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Client":  # imported on first use, so that `import consortium` stays cheap
        from consortium.client.api import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
