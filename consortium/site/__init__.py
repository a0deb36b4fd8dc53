"""What a partner runs at a site: the agent (offers, Ray jobs, metering) and the border gateway, the only exit.

Both share one SQLite file, `site.db`, and no other state: `db` (the file), `outbox` (signed, chained records), `legs`
(the leg table), `totals` inside `outbox`. `python -m consortium.site.agent|gateway --config FILE` start them.
"""
