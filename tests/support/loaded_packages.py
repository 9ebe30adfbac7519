"""What is loaded by whom: one fresh process takes these steps one after the other, and says after each what it has loaded."""

import functools
import json
import subprocess
import sys

PROGRAMS = (
    "from typer.testing import CliRunner; from reparam_compiler.commands.reparam import app; "
    "names = [[], ['fuse'], ['prune'], ['inspect'], ['records', 'list'], ['compile'], ['run'], ['tune']]"
)
"""The console scripts: some commands of `reparam`, and through it those of `tvmc`."""
STEPS = {
    "the words of shapes": "import reparam_compiler.models.shapes",
    "the library": "import reparam_compiler",
    "help": f"{PROGRAMS}; assert all(CliRunner().invoke(app, [*name, '--help']).exit_code == 0 for name in names)",
    "torch alone": "import torch",
    "the zoo": "import reparam_compiler.zoo",
    "the functions": "reparam_compiler.fuse, reparam_compiler.prune",
    "fusing a torch model": "reparam_compiler.fuse(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1)).eval())",
}
"""From the lightest on: what one loads counts for those after it too."""


def loaded(step: str) -> set[str]:
    """The packages that are loaded after a step of `STEPS`, and torch's dynamo if it is."""
    return _loaded()[step]


@functools.cache
def _loaded() -> dict[str, set[str]]:
    lines = ["import json, sys", "found = {}"]
    for name, statement in STEPS.items():
        lines += [statement, f"found[{name!r}] = [name for name in sys.modules if '.' not in name or name == 'torch._dynamo']"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*lines, "print(json.dumps(found))"])], capture_output=True, text=True, check=True
    )
    return {name: {*packages} for name, packages in json.loads(done.stdout).items()}
