"""Text at its home: registering, cleaning, counting words, tokenizing. Text never leaves; digests and counts may.

Pure layer: `documents`, `readers`, `steps`, `dedup`, `counts`, `screening`, `words`, `bpe`, `sample`; on `shingles`:
`minhash`, `jaccard`, `neardup`, `across`, `decontaminate`, `poisoning`. On Ray Data: `clean`, `tokenize`, through
`cluster`. `register` (with `uploads`), `in_place` and `manifest` work on the private store. The
programs in `jobs/` wire these to a leg.
"""
