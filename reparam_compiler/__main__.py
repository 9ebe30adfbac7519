"""`python -m reparam_compiler COMMAND`, and the console script `reparam`: the commands of `commands.reparam`."""

import json
import sys

from reparam_compiler.core.packages import missing_package
from reparam_compiler.tvmc.failing import interrupts_said


def main() -> None:
    """The console script; without typer, where only artifacts are run, it has `doctor` alone and names `tvmc`."""
    with interrupts_said("reparam"):
        try:
            from reparam_compiler.commands.reparam import main as commands
        except ModuleNotFoundError as error:
            refusal = missing_package(error)
            if refusal is None:
                raise
            if sys.argv[1:2] == ["doctor"]:
                sys.exit(_doctor(as_json="--json" in sys.argv))
            sys.exit(f"reparam: {refusal}; to run artifacts: tvmc run")
        commands()


def _doctor(*, as_json: bool) -> int:
    """`reparam doctor` on an installation that is too small for its table; the exit code."""
    from reparam_compiler.commands.installation import Installation

    found = Installation.looked_at()
    sys.stdout.write((json.dumps(found.document()) if as_json else "\n".join(found.lines())) + "\n")
    return found.code


if __name__ == "__main__":
    main()
