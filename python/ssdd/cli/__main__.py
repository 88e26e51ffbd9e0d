"""``python -m ssdd.cli``: the program, if the script ``ssdd`` is not on the path (a source tree)."""

from . import main

main()
