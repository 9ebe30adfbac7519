"""`python -m reparam_compiler fuse | prune | inspect | compile | run | tune | measure`: the console script `reparam`."""

from reparam_compiler.commands.reparam import main

if __name__ == "__main__":
    main()
