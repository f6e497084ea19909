"""Proof: outputs compared. `Probe` says what should come out, `Report` what did."""

from regraft.verification.comparison import Cause, OutputRow, Report, Tolerance, compare
from regraft.verification.live import as_taken, probe_of
from regraft.verification.probes import Probe, verify
from regraft.verification.searching import settle

__all__ = [
    "Cause",
    "OutputRow",
    "Probe",
    "Report",
    "Tolerance",
    "compare",
    "as_taken",
    "probe_of",
    "settle",
    "verify",
]
