"""How many inner steps a site does in a round where sites are not equally fast (`outer.pace: measured`).

The slowest does `outer.inner_steps`; a faster one does more in the same time, at most `MOST_PACE` times as many. Speeds
are those of an earlier round: steps over milliseconds of training, as its accepted commits state them, signed. So the
number follows from what every site keeps of the round, and an auditor knows it too. Weights go by tokens, so more steps
count for more. The learning rate follows rounds, not steps: a site that does more comes down no faster.

A site that lies about its speed changes how long others train before the next exchange, and how many steps it may
commit to itself, both within the bound: of sites that are equally fast one that calls itself faster counts for up to
`MOST_PACE` times as much as each other, whether it did those steps or not. Doing them again by sample finds that out.
"""

from __future__ import annotations

from fractions import Fraction

from consortium.domain.pretraining import MOST_PACE
from consortium.domain.training import Round


def steps_of(site: str, earlier: Round | None, inner_steps: int) -> int:
    """Return the inner steps of `site` in a round, from the last one whose certificate it held when it began.

    `inner_steps` where there is none, or where the site's own commit was not accepted in it.
    """
    if earlier is None or earlier.certificate is None:
        return inner_steps
    accepted = {(part.site, part.digest) for part in earlier.certificate.contributions}
    speeds = {
        commit.site: Fraction(commit.steps, commit.train_ms)
        for commit in earlier.commits
        if (commit.site, commit.digest) in accepted and commit.steps > 0 and commit.train_ms > 0
    }
    if site not in speeds:
        return inner_steps
    wanted = int(inner_steps * speeds[site] / min(speeds.values()))
    return max(inner_steps, min(MOST_PACE * inner_steps, wanted))
