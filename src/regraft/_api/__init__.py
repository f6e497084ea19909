"""The verbs. Each takes what people have at hand (paths, live models, plans) and wires the rooms.

This and `_sides` are the only rooms that see both formats and targets. One file per family of
verbs: planning, loading, writing, access (what became of weights), deltas, restoring, training …;
`regraft/__init__` says which verb lives where, and imports none before it is used.
"""
