"""The single ops on csrc/cpu, one file an op: arguments to a C struct, outputs allocated, a call.

Outputs have the reference's shapes and dtypes; rows from n_active on are left as torch.empty made
them. An index out of range is a ValueError of one line before anything is written. Which calls
they take is one rule, in rule.py; the dispatch (dynkern/ops/backends.py) asks it ahead of each.
"""
