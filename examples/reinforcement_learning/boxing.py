"""Frames of the Atari game Boxing under a random policy, with the state of the game from its memory."""

from __future__ import annotations

from dataclasses import dataclass

import ale_py
import gymnasium
import numpy as np
from PIL import Image

SIDE = 42
STATE = (32, 34, 33, 35)
"""Addresses in the game's memory: column and row of the player, column and row of the opponent."""
SOON = 4
"""A reward is soon if it comes within so many steps."""


@dataclass(frozen=True)
class Frames:
    """Frames of a random policy."""

    images: np.ndarray
    """Grey, uint8 [N, SIDE, SIDE, 1]."""
    state: np.ndarray
    """The bytes at ``STATE``, float32 [N, 4]."""
    near: np.ndarray
    """1 if one of the two boxers scores within ``SOON`` steps, otherwise 0, int64 [N]."""


def random_frames(count: int, seed: int) -> Frames:
    """Return ``count`` frames of a random policy; a step is four frames of the console."""
    gymnasium.register_envs(ale_py)
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    env = gymnasium.make("ALE/Boxing-v5", frameskip=4, obs_type="grayscale")
    random = np.random.default_rng(seed)
    image, _ = env.reset(seed=seed)
    images, states, rewards = [], [], []
    for _ in range(count + SOON):
        images.append(np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX)))
        states.append(env.unwrapped.ale.getRAM()[list(STATE)])
        image, reward, ended, cut, _ = env.step(int(random.integers(env.action_space.n)))
        rewards.append(reward != 0)
        if ended or cut:
            image, _ = env.reset()
    soon = np.lib.stride_tricks.sliding_window_view(np.array(rewards), SOON).any(1)[:count]
    return Frames(
        np.stack(images[:count])[..., None], np.stack(states[:count]).astype(np.float32), soon.astype(np.int64)
    )
