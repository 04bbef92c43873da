"""The slow truth: each mechanism in NumPy float64, one file each.

A file holds `CONFIGS`, the constructor arguments that the suite checks with,
and `attend(mechanism, weights, query, key, value, key_mask, query_mask,
causal)`, which forms the quadratic matrix explicitly. Masks are bool arrays,
never `None`; a row that sees no key is 0.
"""
