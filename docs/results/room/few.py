"""Write the sets of few.toml. FOLDER holds tiny32.npz (Tiny-ImageNet at 32x32, 40,000 training images), flowers.npz,
cifar10k.npz (CIFAR-10 with its first 10,000 training images) and fashion.npz (Fashion-MNIST):

    python docs/results/room/few.py FOLDER

tiny32-10k.npz holds 10,000 of the training images, drawn at random. NAME-dev.npz is for choices of settings: a fifth of
the training images of a target, at most 2,000, is its test part, and the test part of the set itself is left out.
"""

import sys
from pathlib import Path

import numpy as np


def main(folder: Path) -> None:
    with np.load(folder / "tiny32.npz") as source:
        rows = np.sort(np.random.default_rng(0).permutation(len(source["x_train"]))[:10_000])
        test = {name: source[name] for name in ("x_test", "y_test")}
        part = {name: source[name][rows] for name in ("x_train", "y_train")}
    np.savez(folder / "tiny32-10k.npz", **part, **test)
    for name in ("flowers", "cifar10k", "fashion"):
        with np.load(folder / f"{name}.npz") as target:
            x, y = target["x_train"], target["y_train"]
        order = np.random.default_rng(0).permutation(len(x))
        count = min(2000, len(x) // 5)
        fit, measure = np.sort(order[count:]), np.sort(order[:count])
        np.savez(folder / f"{name}-dev.npz", x_train=x[fit], y_train=y[fit], x_test=x[measure], y_test=y[measure])
        print(f"{name}-dev.npz: {len(fit)} images to fit, {count} to measure")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
