"""What `python -m reparam_compiler.prune` runs. Importing it raises: `reparam_compiler.prune` is a function."""

if __name__ not in ("__main__", "__mp_main__"):
    raise ImportError(
        "reparam_compiler.prune is a function, and its module is only there to be run: from reparam_compiler import prune; "
        "or, in a shell: python -m reparam_compiler.prune --help"
    )

from reparam_compiler.commands.reparam import run_alone

if __name__ == "__main__":
    run_alone("prune")
