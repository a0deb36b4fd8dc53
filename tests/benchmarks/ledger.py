"""How fast the ledger appends, proves and verifies: `python -m tests.benchmarks.ledger [--json] [--records N]`.

Records have the size of a usage record. Appends are durable: SQLite with synchronous=FULL, tiles, checkpoint written.
The reference for appends is Tessera on POSIX files, 1,500 to 2,900 durable writes/s as its authors report.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from consortium.keys.signing import SigningKey
from consortium.ledger.log import Ledger
from consortium.ledger.proofs import parse_checkpoint, verify_inclusion

BATCH = 200


def records(count: int) -> list[tuple[str, Any]]:
    """Records of about 500 bytes."""
    row = {
        "leg": "leg-01m80yw367jt17nc48fs9tnkqw",
        "epoch": "1795000000000.12",
        "job": "job-01m80yw367jt17nc48fs9tnkqw",
    }
    return [
        (f"fr-1:{n}", {"type": "usage", "origin": "fr-1", "seq": n, "rows": [row | {"n": n}] * 3}) for n in range(count)
    ]


def measure(count: int) -> list[dict[str, object]]:
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
        _row(f"durable appends in batches of {BATCH}", count / append_s, "records/s", "Tessera, POSIX: 2900", 2900),
        _row("inclusion proofs made", len(proofs) / prove_s, "proofs/s", "none", 1000),
        _row("inclusion proofs verified", len(proofs) / verify_s, "proofs/s", "none", 1000),
    ]


def _row(what: str, value: float, unit: str, reference: str, target: float) -> dict[str, object]:
    return {
        "what": what,
        "value": round(value),
        "unit": unit,
        "reference": reference,
        "target": target,
        "met": value >= target,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--records", type=int, default=20_000)
    chosen = parser.parse_args(argv)
    rows = measure(chosen.records)
    if chosen.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"{row['what']:40} {row['value']:>10,} {row['unit']:12} target {row['target']:>8,}  met {row['met']}")


if __name__ == "__main__":
    main()
