"""The site agent: one process per site, run by the partner; it alone decides what runs there.

Modules: `admission` (judging offers), `server` (the server, by way of the gateway), `runner` (Ray jobs and metering),
`logs` (archive, forwarding), `loop` (the process).
"""
