"""Elements of a vector that lies with several ranks, brought to where they are wanted: one all-to-all after another.

Who has what and who wants what is known to all ranks: ranges of the vector, by rank. A turn moves the same share of
each range, so that buffers stay small beside a model's share and all ranks have about as much to send in every turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
import torch.distributed as dist
from torch import Tensor

from consortium.train.sharded import Ranges, common, lengths

MOST = 1 << 24
"""Elements of a rank that one turn moves, about."""


def redistribute(
    sources: Sequence[Tensor],
    held: tuple[Ranges, ...],
    targets: Sequence[Tensor],
    wanted: tuple[Ranges, ...],
    rank: int,
    *,
    group: dist.ProcessGroup | None = None,
    device: torch.device | None = None,
) -> None:
    """Fill `targets` with what this rank wants: a collective.

    `sources` and `targets` are flat, one for each of this rank's ranges in `held` and in `wanted`; together the ranks
    hold all that is wanted, each element once. They may lie elsewhere than the `device` that sends.
    """
    kind = (*sources, *targets, torch.empty(0))[0].dtype
    for out, back in _turns(held, wanted, rank):
        sent = torch.empty(sum(lengths(out)), dtype=kind, device=device)
        received = torch.empty(sum(lengths(back)), dtype=kind, device=device)
        at = 0
        for pieces in out:
            for piece in _pieces(sources, held[rank], pieces):
                sent[at : at + len(piece)].copy_(piece)
                at += len(piece)
        dist.all_to_all_single(received, sent, list(lengths(back)), list(lengths(out)), group=group)
        at = 0
        for pieces in back:
            for piece in _pieces(targets, wanted[rank], pieces):
                piece.copy_(received[at : at + len(piece)])
                at += len(piece)


def views(flat: Tensor, ranges: Ranges) -> list[Tensor]:
    """Return the parts of a flat tensor that stand for each of the ranges, in order."""
    return list(flat.split([stop - start for start, stop in ranges])) if ranges else []  # type: ignore[no-untyped-call]


@lru_cache(maxsize=16)
def _turns(held: tuple[Ranges, ...], wanted: tuple[Ranges, ...], rank: int) -> list[tuple[list[Ranges], list[Ranges]]]:
    """Return by turn what this rank sends to each rank and what comes to it from each.

    Turns go by the side with more ranges: the model's parts, of which every rank has some all over the vector.
    """
    found = []
    by_held = sum(map(len, held)) >= sum(map(len, wanted))
    by = held if by_held else wanted
    count = -(-max(lengths(by)) // MOST)
    for number in range(count):
        turn = tuple(tuple(_share(one, number, count) for one in ranges) for ranges in by)
        given, taken = (turn, wanted) if by_held else (held, turn)
        out = [common(given[rank], other) for other in taken]
        found.append((out, [common(other, taken[rank]) for other in given]))
    return found


def _share(one: tuple[int, int], number: int, count: int) -> tuple[int, int]:
    """Return one of `count` parts of a range."""
    start, stop = one
    return start + (stop - start) * number // count, start + (stop - start) * (number + 1) // count


def _pieces(tensors: Sequence[Tensor], ranges: Ranges, pieces: Ranges) -> Iterator[Tensor]:
    """Yield the parts of tensors that stand for `ranges` at `pieces`, each of which lies in one of them."""
    at = 0
    for first, last in pieces:
        while ranges[at][1] <= first:
            at += 1
        start = ranges[at][0]
        yield tensors[at][first - start : last - start]
