"""The pairs, one module per family. Frameworks are imported inside builders, not here."""
