"""`python -m reparam_compiler.tvmc`."""

import sys

from reparam_compiler.tvmc.commands import main

if __name__ == "__main__":
    sys.exit(main())
