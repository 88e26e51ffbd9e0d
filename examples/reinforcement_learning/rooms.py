"""Rooms of MiniGrid seen from above, in colour: frames of a random policy, and the expert's episodes.

Layouts that belong to different purposes come from different ranges of seeds: 0 for the unlabelled frames,
``LABELLED`` for frames with the expert's action, ``EPISODES`` for episodes to clone, ``UNSEEN`` for tests.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from reinforcement_learning.planner import ACTIONS, CLOSED, LOCKED, OPEN, Layout, State, plan

with warnings.catch_warnings():  # pygame, which MiniGrid imports, uses what setuptools has deprecated
    warnings.simplefilter("ignore")
    import gymnasium
    import minigrid  # noqa: F401 (it registers the rooms)

TASKS = {"doorkey": "MiniGrid-DoorKey-6x6-v0", "crossing": "MiniGrid-SimpleCrossingS9N2-v0"}
TILE = 4
"""Pixels per cell and side: an image of DoorKey has 24x24 pixels, one of Crossing 36x36."""
STAY = 25
"""Steps in a layout before the next one begins."""
LABELLED, EPISODES, UNSEEN = 1_000_000, 2_000_000, 3_000_000


class Room:
    """A room of ``TASKS[task]``."""

    def __init__(self, task: str) -> None:
        self.env = gymnasium.make(TASKS[task]).unwrapped

    def reset(self, seed: int) -> None:
        """Begin the layout of ``seed``."""
        self.env.reset(seed=seed)
        cells = {(x, y): self.env.grid.get(x, y) for x in range(self.env.width) for y in range(self.env.height)}
        kinds = {place: cell.type for place, cell in cells.items() if cell is not None}
        of = {kind: [place for place, found in kinds.items() if found == kind] for kind in set(kinds.values())}
        door, key = (next(iter(of.get(kind, [])), None) for kind in ("door", "key"))
        self.layout = Layout(frozenset(of["wall"]), of["goal"][0], door, key)

    @property
    def state(self) -> State:
        """The state as the planner knows it."""
        door = self.env.grid.get(*self.layout.door) if self.layout.door else None
        opened = OPEN if door is None or door.is_open else LOCKED if door.is_locked else CLOSED
        x, y = map(int, self.env.agent_pos)
        return x, y, int(self.env.agent_dir), self.env.carrying is not None, opened

    def act(self, action: int) -> bool:
        """Take an action; return True if the goal is reached."""
        _, reward, reached, _, _ = self.env.step(action)
        return bool(reached and reward > 0)

    def image(self) -> np.ndarray:
        """Return the room from above, uint8 [H, W, 3]."""
        return self.env.grid.render(TILE, self.env.agent_pos, self.env.agent_dir)

    def expert(self) -> list[int]:
        """Return the expert's actions from here to the goal."""
        return plan(self.layout, self.state)


def random_frames(task: str, count: int, seed: int = 0) -> np.ndarray:
    """Return frames of a random policy, uint8 [count, H, W, 3]."""
    room, random = Room(task), np.random.default_rng(seed)
    frames: list[np.ndarray] = []
    layout = 0
    while len(frames) < count:
        room.reset(layout)
        layout += 1
        for _ in range(STAY):
            frames.append(room.image())
            if room.act(int(random.choice(ACTIONS))):
                break
    return np.stack(frames[:count])


@dataclass(frozen=True)
class Labelled:
    """Frames with what the expert does there."""

    frames: np.ndarray
    """uint8 [N, H, W, 3]"""
    actions: np.ndarray
    """Position in ``ACTIONS`` of the expert's next action, int64 [N]."""
    near: np.ndarray
    """1 if the expert is rewarded within four steps, otherwise 0, int64 [N]."""


def labelled_frames(task: str, count: int, seed: int) -> Labelled:
    """Return frames of a policy that takes the expert's action half of the time, otherwise a random one.

    Args:
        task: a key of ``TASKS``.
        count: number of frames.
        seed: layouts and actions; different seeds have different layouts.
    """
    room, random = Room(task), np.random.default_rng(seed)
    frames, actions, near = [], [], []
    layout = LABELLED + 10_000 * seed
    while len(frames) < count:
        room.reset(layout)
        layout += 1
        for _ in range(STAY):
            path = room.expert()
            frames.append(room.image())
            actions.append(ACTIONS.index(path[0]))
            near.append(len(path) <= 4)
            if room.act(path[0] if random.random() < 0.5 else int(random.choice(ACTIONS))):
                break
    return Labelled(np.stack(frames[:count]), np.array(actions[:count]), np.array(near[:count], dtype=np.int64))


def unseen_layouts(task: str, count: int, seed: int, episodes: int) -> list[int]:
    """Return seeds of layouts whose walls, doors and keys none of the first ``episodes`` of the expert has.

    Args:
        task: a key of ``TASKS``.
        count: number of layouts; no two of them begin in the same state of the same room.
        seed: the seed of :func:`expert_episodes`.
        episodes: the largest number of episodes that is cloned.
    """
    room, taken, found = Room(task), set(), []
    for layout in range(episodes):
        room.reset(EPISODES + 10_000 * seed + layout)
        taken.add(room.layout)
    starts = set()
    for layout in range(UNSEEN, UNSEEN + 100 * count):
        room.reset(layout)
        if room.layout not in taken and (room.layout, room.state) not in starts:
            starts.add((room.layout, room.state))
            found.append(layout)
            if len(found) == count:
                return found
    raise ValueError(f"count: expected {count} layouts that no episode has, got {len(found)}; clone fewer episodes")


def expert_episodes(task: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return frames and actions (positions in ``ACTIONS``) of whole episodes of the expert."""
    room = Room(task)
    frames, actions = [], []
    for layout in range(count):
        room.reset(EPISODES + 10_000 * seed + layout)
        for action in room.expert():
            frames.append(room.image())
            actions.append(ACTIONS.index(action))
            room.act(action)
    return np.stack(frames), np.array(actions)
