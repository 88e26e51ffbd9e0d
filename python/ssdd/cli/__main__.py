"""``python -m ssdd.cli``: the program, where the script ``ssdd`` is not on the path (a source tree)."""

from . import main

main()
