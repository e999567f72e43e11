"""Shell completion for the `alexnet` command, written from its own parser."""

from __future__ import annotations

import argparse
from typing import Final

SHELLS: Final = ("bash", "zsh", "fish")

_BASH: Final = """\
_alexnet() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands}"
    else
        case "${{COMP_WORDS[1]}}" in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _alexnet alexnet
"""


def script(shell: str, commands: dict[str, argparse.ArgumentParser]) -> str:
    """What a shell's start-up file evaluates.

    Args:
        shell: one of `SHELLS`.
        commands: each command's parser.
    """
    flags = {name: _flags(command) for name, command in commands.items()}
    if shell == "fish":
        lines = [f'complete -c alexnet -n __fish_use_subcommand -f -a "{" ".join(flags)}"']
        lines += [
            f'complete -c alexnet -n "__fish_seen_subcommand_from {name}" -l {flag[2:]}'
            for name, its_flags in flags.items()
            for flag in its_flags
        ]
        return "\n".join(lines) + "\n"
    cases = "\n".join(f'        {name}) words="{" ".join(its)}" ;;' for name, its in flags.items())
    bash = _BASH.format(commands=" ".join(flags), cases=cases)
    return "autoload -U +X bashcompinit && bashcompinit\n" + bash if shell == "zsh" else bash


def _flags(command: argparse.ArgumentParser) -> list[str]:
    return [flag for action in command._actions for flag in action.option_strings if flag.startswith("--")]
