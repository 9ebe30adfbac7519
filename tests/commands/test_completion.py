"""The script that completes commands names what the parsers take, and bash runs it."""

import shlex
import shutil
import subprocess

import pytest
from typer.testing import CliRunner

from reparam_compiler.commands import reparam as cli


def printed(shell: str) -> str:
    found = CliRunner().invoke(cli.app, ["completion", shell])
    assert found.exit_code == 0, found.output
    return found.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_commands_options_and_words() -> None:
    asked = {
        "reparam f": "fuse",
        "reparam fuse --po": "--policy",
        "reparam fuse --policy ": "cost always",
        "reparam prune --max": "--max-ratio",
        "reparam prune --quality st": "standard",
        "reparam compile --max": "--max-error",
        "reparam records ve": "verify",
        "reparam records merge --o": "--output",
        "tvmc r": "run",
        "tvmc run --device v": "vulkan",
        "tvmc tune --tr": "--trials",
        "reparam fuse m": "",
    }
    calls = []
    for line in asked:
        words = [*line.split(), *([""] if line.endswith(" ") else [])]
        calls.append(f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; _{words[0]}_complete")
        calls.append('echo "${COMPREPLY[*]}"')
    done = subprocess.run(["bash", "-c", printed("bash") + "\n".join(calls)], capture_output=True, text=True, check=True)
    assert dict(zip(asked, done.stdout.split("\n"), strict=False)) == asked
    assert done.stderr == ""


def test_zsh_takes_the_same_script() -> None:
    first, _, rest = printed("zsh").partition("\n")
    assert first == "autoload -U +X bashcompinit && bashcompinit"
    assert rest == printed("bash")


def test_no_other_shell_is_known() -> None:
    assert CliRunner().invoke(cli.app, ["completion", "tcsh"]).exit_code == 2
