"""Print a script that completes verbs, options and settings in a shell.

bash: put `eval "$(ssdd completion bash)"` into ~/.bashrc. zsh, fish, tcsh: write the script to the shell's folder of
completions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from . import VERBS, parsers
from .options import Options

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

POSITIONALS = ("SHELL",)
Shell = Literal["bash", "zsh", "fish", "tcsh"]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", type=Shell, help="bash, zsh, fish or tcsh.")


def run(options: Options) -> None:
    program, _ = parsers(list(VERBS))
    print(program.get_completion_script(f"shtab-{options.shell}"))
