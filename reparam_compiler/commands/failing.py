"""How a command of `reparam` ends: exit codes, one line for each error, and JSON for every end where that is asked for."""

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from reparam_compiler.commands.printing import for_machines, print_json
from reparam_compiler.errors import VerificationError
from reparam_compiler.tvmc.failing import CLOSED, ENDS, INTERRUPTED, exit_code_of, interrupts_said, log_lines, report

DIFFERENT = exit_code_of(VerificationError)
NOTHING_FUSED = 9
CODES = (
    "[bold]Exit codes[/]: 0 done · 1 anything else, such as a file that cannot be written · 2 wrong usage · "
    "3 the model cannot be read or written · 4 it cannot be lowered or run · 5 tvm is missing · 6 a rewrite failed · "
    f"7 the result differs from the model · 8 nothing can be pruned · {NOTHING_FUSED} nothing can be fused, and nothing was "
    f"written · {INTERRUPTED} Ctrl-C · {CLOSED} what reads the output closed it."
)


@contextlib.contextmanager
def errors_as_exit_codes(as_json: bool, verbose: int = 0, quiet: bool = False) -> Iterator[None]:
    """What is raised becomes one line on stderr and an exit code; with `verbose` also from where.

    Log lines of the library go to stderr meanwhile.
    """
    with warnings.catch_warnings(), for_machines(as_json), log_lines("reparam", -1 if quiet else verbose):
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)  # torch warns of itself
        try:
            yield
            sys.stdout.flush()
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except ENDS as error:
            raise typer.Exit(report(error, "reparam", as_json=as_json)) from error


class JsonCommand(TyperCommand):
    """A command that gives JSON for wrong usage too, where its words have `--json`."""

    def make_context(self, info_name: Any, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """As typer does: here its words are read."""
        with _usage_as_json("--json" in args):
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        """As typer does: here the command finds words that do not go together."""
        with _usage_as_json(bool(ctx.params.get("as_json"))):
            return super().invoke(ctx)


class Commands(TyperGroup):
    """The commands of the program. typer ends it in silence where Ctrl-C comes before one has begun."""

    def make_context(self, info_name: Any, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """As typer does."""
        with interrupts_said("reparam"):
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        """As typer does."""
        with interrupts_said("reparam"):
            return super().invoke(ctx)


@contextlib.contextmanager
def _usage_as_json(as_json: bool) -> Iterator[None]:
    """typer ends the process with what it raises for wrong usage, and shows it on stderr."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        print_json(as_json, {"error": "UsageError", "message": str(error)})
        raise
