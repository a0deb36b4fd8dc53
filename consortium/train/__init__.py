"""Pre-training across borders: the model, inner steps by Ray Train inside a site, outer rounds between sites.

Pure and without torch: `rounds` (the certificate rule), `screen` (verdicts), `outer` (aggregation and the outer step in
numpy), `order` (data order). With torch, imported only where it runs: `model`, `inner`, `loop`, `launch`, `evaluate`.
"""
