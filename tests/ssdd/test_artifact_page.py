"""docs/artifact.md: the part that says so runs without this package. (tests/docs/test_blocks.py runs all blocks.)"""

import re
import subprocess
import sys

import torch

from ssdd.artifact import DistilledSet, Preprocessing

CHECK = """
import sys
assert not [name for name in sys.modules if name.split(".")[0] in ("ssdd", "ssdd_ext")], "it used this package"
assert features.shape == (5, 256) and losses[-1] < 0.5 * losses[0], losses[::20]
"""
# One process for all, as importing torch takes longer than the blocks. Each folder has its own variables.
PROGRAM = """
import os
variables = {{folder: {{}} for folder in {folders!r}}}
for code in ({alone!r}, {with_it!r}):
    for folder in variables:
        os.chdir(folder)
        exec(code, variables[folder])
"""


def test_the_blocks_without_this_package_run(root, tmp_path):
    g = torch.Generator().manual_seed(0)
    folders = {how: tmp_path / how for how in ("normalised", "raw")}
    for how, folder in folders.items():
        images, targets = torch.rand(12, 3, 16, 16, generator=g), torch.randn(12, 5, generator=g)
        pairs = DistilledSet(images, targets, Preprocessing((0.4, 0.5, 0.4), (0.2, 0.2, 0.3)), support_input=how)
        folder.mkdir()
        pairs.save(folder / "distilled.safetensors")
    page = (root / "docs" / "artifact.md").read_text()
    _, _, page = page.partition("## With no other part of this package")
    alone, _, page = page.partition("## A compact file")
    _, _, with_it = page.partition("## As a torch Dataset")
    blocks, same = (re.findall(r"```python\n(.*?)```", part, re.S) for part in (alone, with_it))
    assert len(blocks) == 4 and len(same) == 2
    parts = {"alone": "\n".join([*blocks, CHECK]), "with_it": "\n".join(same)}
    program = PROGRAM.format(folders=[str(folder) for folder in folders.values()], **parts)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
