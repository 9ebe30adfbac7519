"""`reparam doctor`: what is installed and fits together, what compiled models meet on this machine, what to type."""

import typer
from rich.markup import escape
from rich.table import Column, Table

from reparam_compiler.commands.failing import errors_as_exit_codes
from reparam_compiler.commands.installation import Check, Installation
from reparam_compiler.commands.options import Json, Quiet, Verbose
from reparam_compiler.commands.printing import console, print_json, status

EXAMPLE = "Example: reparam doctor --json | jq '.checks[] | select(.state == \"broken\")'"
STYLES = {"fine": "green", "absent": "", "broken": "red"}


def doctor_command(as_json: Json = False, verbose: Verbose = 0, quiet: Quiet = False) -> None:
    """Look at the installation and the machine: what is there, what is missing, what does not fit, and what to type.

    The exit code is 0 where torch and tvm are there and all fits, else that of a command that meets the first defect.
    """
    with errors_as_exit_codes(as_json, verbose, quiet):
        with status("looking"):
            found = Installation.looked_at()
        console(as_json).print(_table(found.checks))
        print_json(as_json, found.document())
        if found.code:
            raise typer.Exit(found.code)


def _table(checks: list[Check]) -> Table:
    table = Table(*(Column(name, overflow="fold") for name in ("", "found", "", "what to do")))
    for check in checks:
        words = map(escape, (check.subject, check.found, check.state, check.advice))  # an extra stands in brackets
        table.add_row(*words, style=STYLES[check.state])
    return table
