"""The consortium's server: the API under /v1, the scheduler loop, rounds, the outbox to the ledger.

`python -m consortium.server --config FILE` runs it. `core` holds what all parts share, `loop` is the one thread that
changes placements and legs, `app` the HTTP side.
"""
