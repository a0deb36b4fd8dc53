"""The append-only Merkle log of signed records: RFC 6962 tree, C2SP tlog-tiles files, signed checkpoints, proofs.

Modules: `log` (the one writer), `proofs` (verifying, pure), `origins` (records numbered and chained by their origin),
`tree` (which hashes a root or proof is made of), `tiles` (files), `notes` (C2SP signed notes).

A leaf is 32 bytes: SHA-256(salt || canonical payload), salt random. The tree hashes those, so a payload that must be
erased can be, with its salt, and the log still verifies. These formats cannot change once a log has begun.
"""
