"""The tree of errors. Each says where, what was found, what was expected and what to try.

Exit codes of the command line follow diff(1): 1 is a negative result, 2 is usage, and
everything above is an accident of one kind. The table lives here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar


class RegraftError(Exception):
    """Root of everything Regraft raises on purpose.

    **Arguments:**

    - `where`: the tensor, file, rule or option that the error is about.
    - `found`: what is there.
    - `expected`: what would have been right.
    - `hint`: what the reader can do now; printed as `try`.
    - `problems`: further findings of the same kind, collected before raising once.
    """

    exit_code: ClassVar[int] = 7

    def __init__(
        self,
        where: str,
        *,
        found: str = "",
        expected: str = "",
        hint: str = "",
        problems: Iterable[str] = (),
    ) -> None:
        self.where = where
        self.found = found
        self.expected = expected
        self.hint = hint
        self.problems = tuple(problems)
        super().__init__(where)

    def __str__(self) -> str:
        rows = [_printable(self.where)]
        facts = (("found", self.found), ("expected", self.expected), ("try", self.hint))
        rows += [f"  {label:<9} {_printable(text)}" for label, text in facts if text]
        shown = self.problems[:_PROBLEMS_SHOWN]
        rows += [f"  - {_printable(problem)}" for problem in shown]
        if len(self.problems) > len(shown):
            rows.append(f"  … and {len(self.problems) - len(shown)} more")
        return "\n".join(rows)


_PROBLEMS_SHOWN, _CHARACTERS_SHOWN = 20, 1000


def _printable(text: str) -> str:
    """Text for a terminal: names come from files, which may put escape sequences into them."""
    if len(text) > _CHARACTERS_SHOWN:
        text = f"{text[: _CHARACTERS_SHOWN // 2]} … {text[-_CHARACTERS_SHOWN // 4 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


class FormatError(RegraftError):
    """A file cannot be used as a checkpoint (also: no such file)."""

    exit_code = 3


class UnknownFormat(FormatError):
    """No registered format claims the file, or none can write the wanted suffix."""


class CorruptFile(FormatError):
    """The file contradicts itself or ends too early."""


class UnsafeFile(FormatError):
    """Reading the file would mean running code from it or reaching outside it."""


class MissingShard(FormatError):
    """An index names a shard that is not there."""


class TargetError(RegraftError):
    """The target model cannot be built, described, written or run."""

    exit_code = 4


class PlanError(RegraftError):
    """A plan or a rule is wrong."""

    exit_code = 5


class IncompletePlan(PlanError):
    """Something is undecided, or a difference was not allowed by the caller."""

    exit_code = 1


class AmbiguousMatch(PlanError):
    """More than one pairing explains the evidence equally well."""

    exit_code = 1


class ShapeMismatch(PlanError):
    """A graft's operations do not yield the shape that the target has."""


class RuleMatchedNothing(PlanError):
    """A rule names no tensor of either side."""


class StalePlan(PlanError):
    """The plan was made for another file or another model."""


class TransferError(RegraftError):
    """Writing into the model failed; the model was put back as it was."""

    exit_code = 6


class VerificationFailed(RegraftError):
    """Outputs differ. `report` holds the comparison."""

    exit_code = 1

    def __init__(self, where: str, *, report: object = None, **facts: str) -> None:
        super().__init__(where, **facts)
        self.report = report


class MissingDependency(RegraftError):
    """An optional library is needed. The hint names the extra that installs it."""

    exit_code = 8

    def __init__(self, library: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            library,
            found="not installed",
            expected=f"{library}, for {purpose}",
            hint=f"pip install 'regraft[{extra}]'" if extra else f"pip install {library}",
        )


INTERRUPTED = 130
