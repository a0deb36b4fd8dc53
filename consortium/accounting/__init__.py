"""Pure sums over records: GPU time delivered and consumed, crossings of borders, and the two books side by side.

Modules: `periods` (calendar months, UTC), `budgets` (what an account may use in one), `usage` (what is billed, once),
`leases` (the server's own book), `crossings` (release against receipt). No I/O, no clock: the report's writer and its
verifier call the same functions.
"""
