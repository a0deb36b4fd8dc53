"""What a job cannot loosen of the word counts that sites tell each other: configs and the sites themselves ask this."""

from __future__ import annotations

LEAST_COUNT = 3
"""How often a word stands at a site that tells of it, at least."""
LEAST_DOCUMENTS = 2
"""In how many of its documents, at least: one person's file alone decides nothing."""
MOST_CHARS = 64
"""Of a word; longer ones are sentences in scripts without spaces, or numbers and keys."""
