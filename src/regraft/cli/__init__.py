"""The command line: each command parses, makes one call and renders.

Nothing is imported before it is needed, commands included, so that `--help` and `inspect` answer
at once.
"""

from __future__ import annotations

import importlib
import os
import sys

import click

from regraft.cli.output import say
from regraft.errors import INTERRUPTED, FormatError, RegraftError

INTERNAL = 70
# Modules that others are built on that finish something at exit: frameworks, remote files,
# measurements of coverage.
_WITH_ENDINGS = frozenset(("numpy", "asyncio", "concurrent.futures", "multiprocessing", "coverage"))
# The module of each command.
_COMMANDS = {
    "inspect": "inspecting",
    "plan": "planning",
    "why": "planning",
    "apply": "planning",
    "load": "planning",
    "convert": "planning",
    "verify": "proving",
    "probe": "proving",
    "finetune": "tuning",
    "diff": "comparing",
    "trace": "comparing",
    "report": "comparing",
    "restore": "accessing",
    "export": "accessing",
    "delta": "accessing",
    "lineage": "accessing",
    "demo": "tuning",
}


class _Lazy(click.Group):
    """A group that imports a command when it is called or listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"regraft.cli.{_COMMANDS[cmd_name]}")
        return getattr(module, "apply_plan" if cmd_name == "apply" else cmd_name)


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="regraft")
def cli() -> None:
    """Move pretrained weights into your model, and know that they arrived.

    \b
    regraft inspect resnet.pth
    regraft plan resnet.pth mymodels:resnet --set num_classes=7 -o resnet.plan.json
    regraft load resnet.pth mymodels:resnet -o mine.safetensors

    Exit status: 0 as asked, 1 a negative result (not complete, different), 2 usage, 3 and above
    an accident of one kind: file 3, model 4, plan 5, writing 6, missing library 8, interrupted 130.
    """


def main() -> None:
    """Runs the command line with exit codes as documented, and without tracebacks."""
    try:
        code = cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        say("interrupted")
        code = INTERRUPTED
    except RegraftError as error:
        say(f"{type(error).__name__}: {error}", fg="red")
        code = error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        say(f"{FormatError.__name__}: {error}", fg="red")
        code = FormatError.exit_code
    except Exception as error:  # a defect of ours: say so, and how to see more of it
        if os.environ.get("REGRAFT_TRACEBACK"):
            raise
        say(f"internal error: {type(error).__name__}: {error}", fg="red")
        say("  this is a defect of regraft; REGRAFT_TRACEBACK=1 shows where")
        code = INTERNAL
    _leave(code if isinstance(code, int) else 0)


def _leave(code: int) -> None:
    """Ends the process; at once where it has loaded nothing that could have something to finish.

    Python takes apart what it holds piece by piece, which is an eighth of the time of a listing.
    """
    if not _WITH_ENDINGS.isdisjoint(sys.modules):
        sys.exit(code)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        code = 0
    os._exit(code)
