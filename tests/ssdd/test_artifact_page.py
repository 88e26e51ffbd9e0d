"""docs/artifact.md: the part that says so runs without this package. (tests/docs/test_blocks.py runs all blocks.)"""

import re
import subprocess
import sys

import pytest
import torch

from ssdd.artifact import DistilledSet, Preprocessing

CHECK = """
import sys
assert not [name for name in sys.modules if name.split(".")[0] in ("ssdd", "ssdd_ext")], "it used this package"
assert features.shape == (5, 256) and losses[-1] < 0.5 * losses[0], losses[::20]
"""


@pytest.mark.parametrize("support_input", ["normalised", "raw"])
def test_the_blocks_without_this_package_run(root, tmp_path, support_input):
    g = torch.Generator().manual_seed(0)
    images, targets = torch.rand(12, 3, 16, 16, generator=g), torch.randn(12, 5, generator=g)
    pairs = DistilledSet(images, targets, Preprocessing((0.4, 0.5, 0.4), (0.2, 0.2, 0.3)), support_input=support_input)
    pairs.save(tmp_path / "distilled.safetensors")
    page = (root / "docs" / "artifact.md").read_text()
    _, _, page = page.partition("## With no other part of this package")
    alone, _, with_it = page.partition("## As a torch Dataset")
    blocks, same = (re.findall(r"```python\n(.*?)```", part, re.S) for part in (alone, with_it))
    assert len(blocks) == 4 and len(same) == 2
    there = f"import os\nos.chdir({str(tmp_path)!r})"  # cwd= is not used, as PYTHONPATH may be relative
    program = "\n".join([there, *blocks, CHECK, *same])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
