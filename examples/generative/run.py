"""Compare five arms as a start for two generative models: a VAE's encoder, and the middle layer of a flow.

    python examples/generative/run.py --fashion fashion.npz --seeds 0

The digits come with scikit-learn; --fashion adds Fashion-MNIST from an .npz file (x_train, y_train, x_test, y_test).
Finished cells are lines of OUT/cells.jsonl. The same command goes on where it was stopped, and other seeds may run at
the same time. --page FILE writes the tables of the cells into a page of the documentation.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from uses.arms import ARMS, DIFFERENCES, NONE, Arms, Recipe
from uses.cells import Cells, Column, read_cells, replace_tables, tables

import ssdd
from generative import flow, scores
from generative.vae import fit_vae, measure_vae

VAE, FLOW, CONTROL = "vae", "flow", "flow of the arm's images alone"
REAL = "real training images"


@dataclass(frozen=True)
class Sizes:
    """How long everything is trained, and on how many real images."""

    numbers: tuple[int, ...] = (50, 200, 1000)
    """Real images that the models are fitted on."""
    vae_steps: int = 500
    align_steps: int = 200
    flow_steps: int = 500
    euler_steps: int = 24
    samples: int = 1000
    classifier_epochs: int = 8


DIGITS = ssdd.preset("digits")
RECIPES = {
    "digits": Recipe(
        "convnet-16-32", replace(DIGITS.teacher, epochs=100), replace(DIGITS.distill, steps=1000), DIGITS.pretrain
    ),
    "fashion": Recipe(
        "convnet-32-64",
        ssdd.TeacherConfig(
            widths=(32, 64, 128),
            epochs=10,
            projector=256,
            augment=ssdd.AugmentConfig(shift=0.15, scale=0.25, brightness=0.1, contrast=0.3, noise=0.02),
        ),
        ssdd.DistillConfig(images=200, steps=400, batch=256, pool=2, pool_steps=100, pool_lr=0.1),
        ssdd.PretrainConfig(steps=400, batch=128, lr=0.1),
    ),
}
"""Name of the set -> how its arms are made. The pairs are 2% of the training images."""


def read_fashion(file: str) -> ssdd.ImageSet:
    """Read Fashion-MNIST at half its resolution: 14x14, means of 2x2 pixels. Its first 10,000 training images are
    kept."""
    data = ssdd.load_images(file)

    def half(images: Tensor) -> Tensor:
        small = torch.nn.functional.avg_pool2d(images.permute(0, 3, 1, 2).float(), 2)
        return small.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    return ssdd.ImageSet("fashion", half(data.x_train[:10_000]), half(data.x_test), data.y_train[:10_000], data.y_test)


class Generative:
    """The cells of one image set.

    Args:
        arms: the arms of that set.
        sizes: the lengths of the trainings.
        cells: where finished cells go.
    """

    def __init__(self, arms: Arms, sizes: Sizes, cells: Cells) -> None:
        self.arms, self.sizes, self.cells, self.data = arms, sizes, cells, arms.data
        self.folder = arms.folder
        self.pixels, self.test = (x.permute(0, 3, 1, 2).float().div(255) for x in (self.data.x_train, self.data.x_test))
        self._judge: ssdd.Network | None = None

    def keys(self, seed: int) -> list[tuple[str, str, str, int, int]]:
        """Return the keys of all cells of a seed."""
        name = self.data.name
        keys = [(name, task, arm, n, seed) for arm in ARMS for task in (VAE, FLOW) for n in self.sizes.numbers]
        keys += [(name, CONTROL, arm, 0, seed) for arm in ARMS if arm != NONE]
        return [*sorted(keys, key=lambda key: ARMS.index(key[2])), (name, FLOW, REAL, 0, seed)]

    def fill(self, seed: int) -> None:
        """Compute the cells of a seed that are missing."""
        for key in self.cells.missing(self.keys(seed)):
            _, task, arm, n, _ = key
            self.arms.say(f"{self.data.name}, seed {seed}, {arm}: {task}, {n} images")
            self.cells.append(key, self.measure(task, arm, n, seed))

    def measure(self, task: str, arm: str, n: int, seed: int) -> dict[str, float | None]:
        """Return the values of one cell."""
        rows = torch.randperm(len(self.pixels), generator=torch.Generator().manual_seed(100 + seed))
        if arm == REAL:
            return self.score(self.pixels[rows[: self.sizes.samples]])
        if task == VAE:
            network = self.arms.encoder(arm, seed)
            vae = fit_vae(network, self.data, self.pixels[rows[:n]], self.sizes.vae_steps, seed)
            return measure_vae(vae, self.test) | {"teacher": self.arms.error(arm, seed)}
        pairs, normalise = self.arms.pairs(arm, seed), self.data.preprocessing.normalise
        model = flow.new_flow(self.data.channels, self.arms.targets[0].shape[1], seed)
        if task == CONTROL:
            flow.fit(model, pairs.inputs(), self.sizes.flow_steps, seed)
        else:
            if pairs is not None:
                flow.align(model, pairs.inputs(), pairs.targets, self.sizes.align_steps, seed)
            flow.fit(model, normalise(self.pixels[rows[:n]]), self.sizes.flow_steps, seed)
        shape = (self.sizes.samples, *self.pixels.shape[1:])
        made = self.data.preprocessing.pixels(flow.sample(model, shape, self.sizes.euler_steps, seed)).clamp(0, 1)
        if seed == 0:
            np.save(
                self.folder / f"samples-{self.data.name}-{task}-{arm}-{n}.npy", made[:12, 0].mul(255).byte().numpy()
            )
        return self.score(made)

    def score(self, made: Tensor) -> dict[str, float | None]:
        """Return Fréchet distance, density and coverage of pixels [N, C, H, W] against the test images."""
        got, real = (self.judged(part) for part in (made, self.test))
        scale = (real - real.mean(0)).square().mean().sqrt()  # the mean variance of a feature of the test images is 1
        got, real = got / scale, real / scale
        density, coverage = scores.density_and_coverage(got, real)
        return {"frechet": scores.frechet(got, real), "density": density, "coverage": coverage}

    def judged(self, pixels: Tensor) -> Tensor:
        """Return the features [N, D] of a classifier that is trained on the labels of all training images."""
        if self._judge is None:
            file = self.folder / f"classifier-{self.data.name}.safetensors"
            if not file.exists():
                config = ssdd.ClassifierConfig(
                    model="convnet-16-32-64", epochs=self.sizes.classifier_epochs, crop_pad=1, flip=False
                )
                ssdd.train_classifier(self.data, config).save(file)
            self._judge = ssdd.Classifier.load(file).module
        with torch.no_grad():
            inputs = self.data.preprocessing.normalise(pixels)
            return torch.cat([self._judge.features(part) for part in inputs.split(500)])


def write_page(page: Path, cells: dict, sizes: Sizes, names: list[str]) -> None:
    """Write the tables of ``cells`` into the page."""
    lines: list[str] = []
    for name in names:
        seeds = len({key[4] for key in cells if key[0] == name})
        if not seeds:
            continue
        lines += [f"## {name.capitalize()}, {seeds} seed{'s' if seeds > 1 else ''}", ""]
        blocks = {
            "Encoder's error on held-out representations, as a fraction of the teacher's variance.": [
                Column("error", VAE, sizes.numbers[0], "teacher", 3)
            ],
            "VAE: negative ELBO on held-out images, in nats (smaller is better).": [
                Column(f"{n:,} images", VAE, n, "nelbo") for n in sizes.numbers
            ],
            "VAE: squared error of a reconstruction per pixel, times 1,000 (smaller is better).": [
                Column(f"{n:,} images", VAE, n, "error", 2, 1000) for n in sizes.numbers
            ],
            "Flow: Fréchet distance to the test images (smaller is better).": [
                Column(f"{n:,} images", FLOW, n, "frechet", 2) for n in sizes.numbers
            ],
            "Flow: density and coverage (larger is better).": [
                Column(f"{measure}, {n:,}", FLOW, n, measure, 2)
                for measure in ("density", "coverage")
                for n in sizes.numbers
            ],
            "Control: the flow trained on the arm's images alone; "
            "the full set's row is what all real images would give.": [
                Column(measure, CONTROL, 0, measure, 2) for measure in ("frechet", "density", "coverage")
            ],
        }
        for text, columns in blocks.items():
            found = tables(cells, name, columns, ARMS, DIFFERENCES)
            lines += [text, "", *found] if found else []
        floor = [
            Column(measure, FLOW, 0, measure, 2).mean(cells, name, REAL)
            for measure in ("frechet", "density", "coverage")
        ]
        if all(floor):
            lines += [
                f"Floor, {sizes.samples:,} real training images against the test images: Fréchet distance {floor[0]}, "
                f"density {floor[1]}, coverage {floor[2]}.",
                "",
            ]
    replace_tables(page, lines)


def draw_samples(folder: Path, name: str, n: int, out: Path) -> None:
    """Write one picture: a row of 12 samples per arm, for ``n`` real images and seed 0."""
    rows = [np.load(folder / f"samples-{name}-{FLOW}-{arm}-{n}.npy") for arm in ARMS]
    sheet = np.concatenate([np.concatenate([np.pad(image, 1) for image in row], 1) for row in rows])
    picture = Image.fromarray(sheet)
    picture.resize((picture.width * 3, picture.height * 3), Image.Resampling.NEAREST).save(out, optimize=True)


def main(arguments: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--fashion", help="Fashion-MNIST as an .npz file (default: digits only)")
    p.add_argument("--sets", default="digits,fashion", help="sets to run, fashion only with --fashion (default: both)")
    p.add_argument("--seeds", default="0", help="seeds, such as 0,1,2 (default: 0)")
    p.add_argument("--out", type=Path, default=Path("runs/generative"), help="folder (default: runs/generative)")
    p.add_argument("--page", type=Path, help="write the tables of the cells into this page and compute nothing")
    p.add_argument("--threads", type=int, default=1, help="threads (default: 1)")
    a = p.parse_args(arguments)
    sizes = Sizes()
    if a.page:
        write_page(a.page, read_cells(a.out / "cells.jsonl"), sizes, list(RECIPES))
        return 0
    torch.set_num_threads(a.threads)
    names = a.sets.split(",")
    sets = [ssdd.load_images("digits")] if "digits" in names else []
    sets += [read_fashion(a.fashion)] if "fashion" in names and a.fashion else []
    for seed in map(int, a.seeds.split(",")):
        for data in sets:
            arms = Arms(data, RECIPES[data.name], a.out, lambda line: print(line, flush=True))
            cells = Cells(a.out / "cells.jsonl", data.name, (sizes, RECIPES[data.name]))
            Generative(arms, sizes, cells).fill(seed)
    for data in sets if "0" in a.seeds.split(",") else []:
        draw_samples(a.out, data.name, sizes.numbers[1], a.out / f"samples-{data.name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
