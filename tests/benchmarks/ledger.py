"""How fast the ledger appends, proves and verifies: `python -m tests.benchmarks.ledger [--json] [--records N]`.

Records have the size of a usage record. Appends are durable: SQLite with synchronous=FULL, tiles, checkpoint written.
The reference for appends is Tessera on POSIX files, 1,500 to 2,900 durable writes/s as its authors report.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

from consortium.keys.signing import SigningKey
from consortium.ledger.log import Ledger
from consortium.ledger.proofs import parse_checkpoint, verify_inclusion
from tests.benchmarks.table import Row, arguments, row, show

BATCH = 200


def records(count: int) -> list[tuple[str, Any]]:
    """Records of about 500 bytes."""
    leg = {
        "leg": "leg-01m80yw367jt17nc48fs9tnkqw",
        "epoch": "1795000000000.12",
        "job": "job-01m80yw367jt17nc48fs9tnkqw",
    }
    return [
        (f"fr-1:{n}", {"type": "usage", "origin": "fr-1", "seq": n, "rows": [leg | {"n": n}] * 3}) for n in range(count)
    ]


def measure(count: int) -> list[Row]:
    """The rows of the table."""
    key = SigningKey.generate()
    with tempfile.TemporaryDirectory() as folder, Ledger(folder, key, "bench") as log:
        given = records(count)
        begun = time.perf_counter()
        for start in range(0, count, BATCH):
            log.append(given[start : start + BATCH])
        append_s = time.perf_counter() - begun
        checked = range(0, count, max(1, count // 500))
        begun = time.perf_counter()
        proofs = [log.inclusion(index, count) for index in checked]
        prove_s = time.perf_counter() - begun
        checkpoint = parse_checkpoint(log.checkpoint(), "bench", key.public)
        begun = time.perf_counter()
        for index, proof in zip(checked, proofs, strict=True):
            data = bytes.fromhex(log.entry(index).data)
            verify_inclusion(data, index, checkpoint.size, proof, checkpoint.root)
        verify_s = time.perf_counter() - begun
    return [
        row(f"durable appends in batches of {BATCH}", count / append_s, "records/s", 2900, least=2900),
        row("inclusion proofs made", len(proofs) / prove_s, "proofs/s", least=1000),
        row("inclusion proofs verified", len(proofs) / verify_s, "proofs/s", least=1000),
    ]


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__)
    parser.add_argument("--records", type=int, default=20_000)
    choice = parser.parse_args()
    show(measure(choice.records), as_json=choice.json)


if __name__ == "__main__":
    main()
