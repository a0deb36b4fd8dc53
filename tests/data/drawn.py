"""Texts drawn by number, copies of them with words changed, and how similar two are, worked out the plain way."""

from __future__ import annotations

import random

VOCABULARY = [f"{a}{b}" for a in "bcdfglmnprstv" for b in ("ar", "en", "il", "or", "ul", "ast", "ent", "ion")]


def text(seed: int, words: int = 200) -> str:
    return " ".join(random.Random(seed).choices(VOCABULARY, k=words))


def altered(original: str, changes: int, seed: int = 0) -> str:
    words = original.split()
    for place in random.Random(f"{seed}").sample(range(len(words)), changes):
        words[place] = f"neu{place}x{seed}"
    return " ".join(words)


def shingles_of(one: str, size: int = 5) -> set[tuple[str, ...]]:
    words = one.split()
    return {tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1))} if words else set()


def jaccard(one: str, other: str) -> float:
    left, right = shingles_of(one), shingles_of(other)
    return len(left & right) / max(len(left | right), 1)
