"""Proof: outputs compared. `Probe` says what should come out, `Report` what did."""

from regraft.verification.comparison import Cause, OutputRow, Report, Tolerance, compare
from regraft.verification.live import probe_of
from regraft.verification.probes import Probe, verify
from regraft.verification.searching import settle

__all__ = [
    "Cause",
    "OutputRow",
    "Probe",
    "Report",
    "Tolerance",
    "compare",
    "probe_of",
    "settle",
    "verify",
]
