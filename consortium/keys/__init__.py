"""Keys and what they vouch for: canonical JSON, signatures, sealing, signed documents, rosters, tokens, code digests.

Modules: `canonical`, `signing` (Ed25519), `sealing` (X25519, HPKE), `trust` (whose keys one believes), `strict`
(other people's JSON), `documents` (policy, roster, site and quota files signed by their partner), `roster`, `tokens`
(bearer tokens), `code`.
"""
