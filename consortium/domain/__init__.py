"""The nouns of the consortium: frozen dataclasses, states, ids and integer quantities with units in their names.

Nothing here does I/O, reads a clock or draws a random number. Change a value with `dataclasses.replace`.
Modules: `ids`, `units`, `codec`, `partner` (partners, people, sites, flavors), `quota`, `data` (artifact classes,
datasets, crossings), `job` (specs, jobs, attempts, legs, leases), `decision` (reasons), `records`, `training`,
`protocol` (what server, agents, gateways and legs say to each other).
"""
