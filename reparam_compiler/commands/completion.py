"""What completes the commands of `reparam` and `tvmc` in bash and zsh: a script of their parsers' words."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

SHELLS = ("bash", "zsh")
_FLAG = re.compile(r"--[\w-]+")
_CHOICES = re.compile(r"\{([\w,-]+)\}")
Words = Mapping[str, Sequence[str]]
"""For each command its options, and for each option that takes one of some words, these words; "" has the commands."""


def of_group(group: Any) -> dict[str, list[str]]:
    """The words of a typer program, given as its group of commands."""
    found: dict[str, list[str]] = {"": sorted(group.commands)}
    for name, command in group.commands.items():
        inner = getattr(command, "commands", {})
        if inner:
            found[f"{name} {name}"] = sorted(inner)  # what follows the name of a group
        parameters = [parameter for each in (command, *inner.values()) for parameter in each.params]
        options = [parameter for parameter in parameters if parameter.param_type_name == "option"]
        found[name] = sorted({flag for option in options for flag in option.opts if flag.startswith("--")})
        for option in options:
            if words := _words(option.metavar):
                found |= {f"{name} {flag}": words for flag in option.opts}
    return found


def of_help(commands: Mapping[str, str]) -> dict[str, list[str]]:
    """The words of a program of argparse, from the help of each of its commands."""
    found: dict[str, list[str]] = {"": sorted(commands)}
    for name, text in commands.items():
        options = [line.strip().partition("  ")[0] for line in text.splitlines() if line.strip().startswith("-")]
        found[name] = sorted({flag for option in options for flag in _FLAG.findall(option)})
        for option in options:
            if choices := _CHOICES.search(option):
                found |= {f"{name} {flag}": choices[1].split(",") for flag in re.findall(r"(?<!\S)--?[\w-]+", option)}
    return found


def script(shell: str, programs: Mapping[str, Words]) -> str:
    """What a shell reads to complete these programs; files where nothing else fits.

    >>> print(script("bash", {"tool": {"": ["run"], "run": ["--mode"], "run --mode": ["fast", "slow"]}}))
    _tool_complete() {
      local word=${COMP_WORDS[COMP_CWORD]} last=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]} words=
      [ "$COMP_CWORD" = 1 ] && command=
      case "$command $last" in
        "run --mode") words="fast slow" ;;
        *) case "$command" in
          "") words="run" ;;
          "run") [[ $word == -* ]] && words="--mode" ;;
        esac ;;
      esac
      COMPREPLY=($(compgen -W "$words" -- "$word"))
    }
    complete -o default -F _tool_complete tool
    """
    head = ["autoload -U +X bashcompinit && bashcompinit"] if shell == "zsh" else []
    return "\n".join([*head, *(line for name, words in programs.items() for line in _function(name, words))])


def _function(program: str, words: Words) -> list[str]:
    values = [f'    "{key}") words="{" ".join(of)}" ;;' for key, of in words.items() if " " in key]
    commands = [
        f'      "{key}") [[ $word == -* ]] && words="{" ".join(of)}" ;;' for key, of in words.items() if key and " " not in key
    ]
    return [
        f"_{program}_complete() {{",
        "  local word=${COMP_WORDS[COMP_CWORD]} last=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]} words=",
        '  [ "$COMP_CWORD" = 1 ] && command=',
        '  case "$command $last" in',
        *values,
        '    *) case "$command" in',
        f'      "") words="{" ".join(words[""])}" ;;',
        *commands,
        "    esac ;;",
        "  esac",
        '  COMPREPLY=($(compgen -W "$words" -- "$word"))',
        "}",
        f"complete -o default -F _{program}_complete {program}",
    ]


def _words(metavar: Any) -> list[str]:
    """The words of an option that takes one of some: "[a|b]"."""
    text = str(metavar or "")
    return text[1:-1].split("|") if text.startswith("[") and "|" in text else []
