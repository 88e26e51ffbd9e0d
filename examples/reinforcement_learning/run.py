"""Compare five arms as a start for control: two tasks of MiniGrid, and the Atari game Boxing.

    pip install 'ssdd[distill,rl]'
    python examples/reinforcement_learning/run.py --seeds 0

Finished cells are lines of OUT/cells.jsonl. The same command goes on where it was stopped, and other seeds may run at
the same time. --page FILE writes the tables of the cells into a page of the documentation.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from uses.arms import ARMS, DIFFERENCES, Arms, Recipe
from uses.cells import Cells, Column, Key, read_cells, replace_tables, tables

import ssdd
from reinforcement_learning.planner import ACTIONS
from reinforcement_learning.readout import (
    Encoder,
    clone,
    draw_balanced,
    probe_class,
    probe_state,
    success,
)

PROBE, CLONE = "probe", "cloning"
TEACHER, RANDOM_POLICY = "the teacher itself", "random policy"
SETS = ("doorkey", "crossing", "boxing")


@dataclass(frozen=True)
class Sizes:
    """How many frames there are, and how long the policies are trained."""

    frames: int = 5000
    """Unlabelled frames of a random policy."""
    held_out: int = 500
    """More of them, on which the encoder's error is measured."""
    labelled: tuple[int, ...] = (20, 100, 500)
    """Labelled frames of a probe."""
    tested: int = 1000
    """Labelled frames that a probe is tested on."""
    episodes: tuple[int, ...] = (1, 5, 20)
    """Episodes of the expert that are cloned."""
    frozen_steps: int = 300
    finetune_steps: int = 150
    layouts: int = 100
    """Unseen layouts that a policy is tested on."""
    limit: int = 60
    """Steps in such a layout."""


RECIPE = Recipe(
    "convnet-16-32-64",
    ssdd.TeacherConfig(
        widths=(16, 32, 64, 128),
        epochs=8,
        batch=128,
        projector=256,
        augment=ssdd.AugmentConfig(
            shift=0.06, scale=0.05, flip=0.0, brightness=0.1, contrast=0.2, saturation=0.0, grayscale=0.0, noise=0.02
        ),
    ),
    ssdd.DistillConfig(images=100, steps=300, batch=128, pool=2, pool_steps=100, pool_lr=0.05, ridge=1e-4),
    ssdd.PretrainConfig(steps=300, batch=64, lr=0.05),
)
"""How the arms of every set are made. No flip: it would exchange left and right. The pairs are 2% of the frames.
Frames repeat, which makes the kernel matrix nearly singular: the ridge is 100 times the published one."""


class Set:
    """The unlabelled frames of a set, and what its probes need.

    Args:
        name: one of ``SETS``.
        sizes: the numbers of frames.
        cache: folder in which the frames are kept.
    """

    def __init__(self, name: str, sizes: Sizes, cache: Path) -> None:
        self.name, self.sizes, self.cache = name, sizes, cache
        self.atari = name == "boxing"

    @cached_property
    def images(self) -> ssdd.ImageSet:
        """The frames of a random policy, read from an .npz file as a user's own would be."""
        file = self.cache / f"{self.name}.npz"
        if not file.exists():
            count = self.sizes.frames + self.sizes.held_out
            frames = boxing().random_frames(count, 0).images if self.atari else rooms().random_frames(self.name, count)
            self.cache.mkdir(parents=True, exist_ok=True)
            np.savez(file, x_train=frames[: self.sizes.frames], x_test=frames[self.sizes.frames :])
        return ssdd.load_images(str(file))

    def labelled(self, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return frames and their labels by name; those with another seed are of other layouts or games."""
        count = self.sizes.tested + 2 * max(self.sizes.labelled)
        if self.atari:
            found = boxing().random_frames(count, 1 + seed)
            labels = {"state": found.state, "near": found.near}
        else:
            found = rooms().labelled_frames(self.name, count, seed)
            labels = {"action": found.actions, "near": found.near}
        images = found.images if self.atari else found.frames
        return torch.from_numpy(images), {name: torch.from_numpy(value) for name, value in labels.items()}


def rooms() -> Any:
    """Import what needs MiniGrid."""
    from reinforcement_learning import rooms

    return rooms


def boxing() -> Any:
    """Import what needs ale-py."""
    from reinforcement_learning import boxing

    return boxing


class Control:
    """The cells of one set."""

    def __init__(self, data: Set, arms: Arms, sizes: Sizes, cells: Cells) -> None:
        self.data, self.arms, self.sizes, self.cells = data, arms, sizes, cells
        self.labelled, self.encoder = lru_cache(1)(data.labelled), lru_cache(1)(self._encoder)
        self.features = lru_cache(1)(self._features)

    @cached_property
    def rooms(self) -> list:
        """The rooms that policies are tested in."""
        return [rooms().Room(self.data.name) for _ in range(self.sizes.layouts)]

    def keys(self, seed: int) -> list[Key]:
        """Return the keys of all cells of a seed."""
        name, keys = self.data.name, []
        for arm in (*ARMS, TEACHER):
            keys += [(name, PROBE, arm, n, seed) for n in self.sizes.labelled]
            if not self.data.atari and arm != TEACHER:
                keys += [(name, CLONE, arm, n, seed) for n in self.sizes.episodes]
        return keys if self.data.atari else [*keys, (name, CLONE, RANDOM_POLICY, 0, seed)]

    def fill(self, seed: int) -> None:
        """Compute the cells of a seed that are missing."""
        for key in self.cells.missing(self.keys(seed)):
            _, task, arm, n, _ = key
            self.arms.say(f"{self.data.name}, seed {seed}, {arm}: {task}, {n}")
            self.cells.append(key, self.probe(arm, n, seed) if task == PROBE else self.clone(arm, n, seed))

    def _encoder(self, arm: str, seed: int) -> Encoder:
        """Return an arm's features as a function of stored images, standardised on unlabelled frames."""
        unlabelled, preprocessing = (
            self.data.images.x_train[:: max(1, self.sizes.frames // 1000)],
            self.data.images.preprocessing,
        )
        if arm == TEACHER:
            return Encoder(self.arms.teacher, preprocessing, unlabelled)
        return Encoder(self.arms.encoder(arm, seed).features, preprocessing, unlabelled)

    def _features(self, arm: str, seed: int) -> Tensor:
        """Return the features of the labelled frames."""
        return self.encoder(arm, seed)(self.labelled(seed)[0])

    def probe(self, arm: str, n: int, seed: int) -> dict[str, float | None]:
        """Return what linear probes on ``n`` labelled frames reach on frames of other layouts."""
        x, labels = self.features(arm, seed), self.labelled(seed)[1]
        first = len(x) - self.sizes.tested
        values = {}
        for name, y in labels.items():
            if name == "state":
                rows = torch.randperm(first, generator=torch.Generator().manual_seed(seed))[:n]
                values[name] = probe_state(x[rows], y[rows], x[first:], y[first:])
            else:
                rows = draw_balanced(y[:first], n, seed)
                values[name] = probe_class(x[rows], y[rows], x[first:], y[first:])
        return values | {"teacher": None if arm == TEACHER else self.arms.error(arm, seed)}

    def clone(self, arm: str, n: int, seed: int) -> dict[str, float]:
        """Return the success of policies that clone ``n`` episodes, in layouts that no episode has."""
        made = self.rooms
        seeds = rooms().unseen_layouts(self.data.name, self.sizes.layouts, seed, max(self.sizes.episodes))
        if arm == RANDOM_POLICY:
            return {"success": random_success(made, seeds, self.sizes.limit, seed)}
        frames, actions = rooms().expert_episodes(self.data.name, n, seed)
        values = {}
        for way, steps in (("frozen", self.sizes.frozen_steps), ("finetuned", self.sizes.finetune_steps)):
            policy = clone(
                self.arms.encoder(arm, seed),
                self.encoder(arm, seed),
                frames,
                actions,
                frozen=way == "frozen",
                steps=steps,
                count=len(ACTIONS),
                seed=seed,
            )
            values[way], strip = success(policy, made, seeds, self.sizes.limit, ACTIONS)
            if seed == 0:
                np.save(self.arms.folder / f"strip-{self.data.name}-{way}-{arm}-{n}.npy", np.stack(strip))
        return values


def random_success(made: list, seeds: list[int], limit: int, seed: int) -> float:
    """Return the share of layouts in which random actions reach the goal."""
    random, reached = np.random.default_rng(seed), 0
    for room, layout in zip(made, seeds, strict=True):
        room.reset(layout)
        reached += any(room.act(int(random.choice(ACTIONS))) for _ in range(limit))
    return reached / len(seeds)


def write_page(page: Path, cells: Mapping[Key, Mapping[str, Any]], sizes: Sizes) -> None:
    """Write the tables of ``cells`` into the page."""
    lines: list[str] = []
    probes = {
        "action": "Probe of the expert's action: mean over the five actions of the share that is recognised, percent.",
        "state": "Probe of the game's state: R² of the positions of both boxers, percent.",
        "near": "Probe of reward: whether one comes within four steps, balanced accuracy, percent.",
    }
    for name in SETS:
        seeds = len({key[4] for key in cells if key[0] == name})
        if not seeds:
            continue
        lines += [f"## {name.capitalize()}, {seeds} seed{'s' if seeds > 1 else ''}", ""]
        error = [Column("error", PROBE, sizes.labelled[0], "teacher", 3)]
        lines += ["Encoder's error on held-out representations, as a fraction of the teacher's variance.", ""]
        lines += tables(cells, name, error, ARMS, DIFFERENCES)
        for measure, text in probes.items():
            columns = [Column(f"{n} frames", PROBE, n, measure, 1, 100) for n in sizes.labelled]
            if any(columns[0].values(cells, name, arm) for arm in ARMS):
                lines += [text, "", *tables(cells, name, columns, (*ARMS, TEACHER), DIFFERENCES)]
        columns = [
            Column(f"{text}, {n}", CLONE, n, way, 0, 100)
            for way, text in (("frozen", "frozen"), ("finetuned", "fine-tuned"))
            for n in sizes.episodes
        ]
        if any(columns[0].values(cells, name, arm) for arm in ARMS):
            floor = Column("", CLONE, 0, "success", 0, 100).mean(cells, name, RANDOM_POLICY)
            lines += [
                "Cloning episodes of the expert, encoder frozen or fine-tuned: success in "
                f"{sizes.layouts} unseen layouts, percent. "
                f"The expert reaches 100, a random policy {floor or '(missing)'}.",
                "",
                *tables(cells, name, columns, ARMS, DIFFERENCES),
            ]
    replace_tables(page, lines)


def draw_strip(folder: Path, name: str, n: int, out: Path, count: int = 18) -> None:
    """Write one picture: a row per arm with the first ``count`` steps in the first unseen layout, fine-tuned on ``n``
    episodes, seed 0."""
    rows = []
    for arm in ARMS:
        strip = np.load(folder / f"strip-{name}-finetuned-{arm}-{n}.npy")[:count]
        blank = np.full((count - len(strip), *strip.shape[1:]), 255, np.uint8)
        rows.append(
            np.concatenate([np.pad(f, ((1, 1), (1, 1), (0, 0)), constant_values=255) for f in [*strip, *blank]], 1)
        )
    picture = Image.fromarray(np.concatenate(rows))
    picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST).save(out, optimize=True)


def main(arguments: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sets", default=",".join(SETS), help=f"of {', '.join(SETS)} (default: all)")
    p.add_argument("--seeds", default="0", help="seeds, such as 0,1,2 (default: 0)")
    p.add_argument("--out", type=Path, default=Path("runs/rl"), help="folder (default: runs/rl)")
    p.add_argument("--page", type=Path, help="write the tables of the cells into this page and compute nothing")
    p.add_argument("--threads", type=int, default=1, help="threads (default: 1)")
    a = p.parse_args(arguments)
    sizes = Sizes()
    if a.page:
        write_page(a.page, read_cells(a.out / "cells.jsonl"), sizes)
        return 0
    torch.set_num_threads(a.threads)
    for seed in map(int, a.seeds.split(",")):
        for name in a.sets.split(","):
            data = Set(name, sizes, a.out)
            arms = Arms(data.images, RECIPE, a.out, lambda line: print(line, flush=True))
            Control(data, arms, sizes, Cells(a.out / "cells.jsonl", name, (sizes, RECIPE))).fill(seed)
    for name in a.sets.split(",") if "0" in a.seeds.split(",") else []:
        if name != "boxing":
            draw_strip(a.out, name, sizes.episodes[-1], a.out / f"strip-{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
