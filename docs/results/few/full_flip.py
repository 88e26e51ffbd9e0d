"""Write the row "full set, flip" of study.toml: all training images and their mirror images, each with the teacher's
representation.

    python docs/results/few/full_flip.py FOLDER/tiny32-10k.npz

The file is full-flip.safetensors beside this script (287 MB).
"""

import sys
from pathlib import Path

import torch

import ssdd

HERE = Path(__file__).parent


def main(source: Path) -> None:
    data = ssdd.load_images(source)
    teacher = ssdd.Teacher.load(HERE.parent / "room" / "tiny-teacher.safetensors")
    both = torch.cat([data.x_train, data.x_train.flip(2)])  # [N, H, W, C]
    pairs = ssdd.DistilledSet(
        images=both.permute(0, 3, 1, 2).float().div(255),
        targets=teacher.represent(both),
        preprocessing=data.preprocessing,
        method="full set, flip",
        source=data.name,
    )
    print(pairs.save(HERE / "full-flip.safetensors"), len(pairs))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
