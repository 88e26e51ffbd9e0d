"""``python -m ssdd_ext.bench``."""

from . import main

main()
