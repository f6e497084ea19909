"""An open collection of pairs: a checkpoint, and another implementation of what it holds.

Each pair says what a person would say about it (an exact mapping exists; these tensors are fresh;
success must not be claimed), and outputs decide, never names. `python -m benchmarks.pairs --help`
scores Regraft and what people use today.

- `collection`: what a pair is, and the registry. `families/`: the pairs. `models/`: definitions
  written for them. `randomness`, `files`, `truths`: random values, files as a user would have
  them, mappings written by hand, which prove that a pair is solvable.
- `judging`, `rivals`: verdicts on Regraft and on others. `workers`, `tables`: processes with
  time limits, and what is printed.
"""
