"""`python -m reparam_compiler COMMAND`, and the console script `reparam`: the commands of `commands.reparam`."""

import sys

from reparam_compiler.core.packages import missing_package


def main() -> None:
    """The console script; where only artifacts are run, and typer is missing, `tvmc` is the command."""
    try:
        from reparam_compiler.commands.reparam import main as commands
    except ModuleNotFoundError as error:
        refusal = missing_package(error)
        if refusal is None:
            raise
        sys.exit(f"reparam: {refusal}; to run artifacts: tvmc run")
    commands()


if __name__ == "__main__":
    main()
