"""Several states pool GPU clusters, data and people to train models together; each keeps control of its own."""

__version__ = "0.1.0"
PROTOCOL_VERSION = 1
"""Version of the messages between server, agents and clients; an agent one version behind keeps working."""
