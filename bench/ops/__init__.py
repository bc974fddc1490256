"""Microbenchmarks of every op on every backend that runs here, beside the reference and the best
library call.

`pytest bench/ops --benchmark-only` and `dynkern bench ops` time the same cases with the same clock:
grid.py says which, *_cases.py what each calls, pool.py keeps it out of the caches, parity.py what
must be right before anything is timed, contest.py times and accounts.
"""
