"""The example of reinforcement learning: the planner, what is read out, and a miniature with real environments."""

import itertools
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from reinforcement_learning import readout, run
from reinforcement_learning.planner import (
    ACTIONS,
    CLOSED,
    FORWARD,
    LOCKED,
    MOVES,
    OPEN,
    PICK_UP,
    RIGHT,
    TOGGLE,
    Layout,
    follow,
    plan,
)
from uses.arms import ARMS, Arms, Recipe
from uses.cells import Cells, read_cells

import ssdd

PAGE = Path("docs/results/reinforcement-learning/README.md")
ROOM = """
#######
#..#..#
#k.D..#
#..#.g#
#######
"""


def read(text: str) -> Layout:
    places = {(x, y): c for y, line in enumerate(text.split()) for x, c in enumerate(line)}
    of = {kind: [place for place, c in places.items() if c == kind] for kind in "#gDk"}
    return Layout(frozenset(of["#"]), of["g"][0], next(iter(of["D"]), None), next(iter(of["k"]), None))


LAYOUT = read(ROOM)


def test_the_expert_takes_the_key_opens_the_door_and_reaches_the_goal():
    # up at (1, 1), the key below it: turn twice, take it, ... through the door at (3, 2) to the goal at (5, 3)
    state, actions = (1, 1, 3, False, LOCKED), plan(LAYOUT, (1, 1, 3, False, LOCKED))
    for action in actions:
        state = follow(LAYOUT, state, action)
    assert state == (5, 3, state[2], True, OPEN)
    assert actions.count(PICK_UP) == 1 and actions.count(TOGGLE) == 1
    assert actions.index(PICK_UP) < actions.index(TOGGLE)


def test_paths_are_as_short_as_value_iteration_says():
    inside = [(x, y) for x in range(7) for y in range(5) if (x, y) not in LAYOUT.walls]
    states = [
        (*p, d, c, o) for p, d, c, o in itertools.product(inside, range(4), (False, True), (LOCKED, CLOSED, OPEN))
    ]
    steps = {state: 0 if state[:2] == LAYOUT.goal else 10**6 for state in states}
    moved = True
    while moved:
        moved = False
        for state in states:
            best = min(1 + steps[follow(LAYOUT, state, action)] for action in ACTIONS)
            if best < steps[state]:
                steps[state], moved = best, True
    for state in random.Random(1).sample([s for s in states if steps[s] < 10**6], 60):
        assert len(plan(LAYOUT, state)) == steps[state], state


def test_what_blocks_and_what_does_nothing():
    facing = (2, 2, 0, False, LOCKED)  # in front of the door
    assert follow(LAYOUT, facing, FORWARD) == facing == follow(LAYOUT, facing, TOGGLE)
    assert follow(LAYOUT, (2, 2, 0, True, LOCKED), TOGGLE) == (2, 2, 0, True, OPEN)
    assert follow(LAYOUT, (2, 2, 0, False, OPEN), TOGGLE) == (2, 2, 0, False, CLOSED)
    assert follow(LAYOUT, (2, 2, 2, False, LOCKED), FORWARD) == (2, 2, 2, False, LOCKED)  # the key is in the way
    assert follow(LAYOUT, (2, 2, 2, True, LOCKED), FORWARD) == (1, 2, 2, True, LOCKED)
    assert follow(LAYOUT, (1, 1, 3, False, LOCKED), RIGHT) == (1, 1, 0, False, LOCKED)
    closed = replace(LAYOUT, walls=LAYOUT.walls | {LAYOUT.door})
    with pytest.raises(ValueError, match="expected a goal that can be reached"):
        plan(closed, (1, 1, 0, False, LOCKED))


class OwnRoom:
    """A room of this test, played by the planner's rules and drawn with one colour per thing."""

    def __init__(self):
        self.layout = LAYOUT

    def reset(self, seed):
        self.state = (1 + seed % 2, 1 + 2 * (seed // 2 % 2), seed // 4 % 4, False, LOCKED)

    def act(self, action):
        self.state = follow(self.layout, self.state, action)
        return self.state[:2] == self.layout.goal

    def image(self):
        x, y, direction, carried, door = self.state
        image = np.zeros((20, 28, 3), np.uint8)
        for i, j in self.layout.walls:
            image[4 * j : 4 * j + 4, 4 * i : 4 * i + 4] = 100
        for place, value in ((self.layout.key, 0 if carried else 200), (self.layout.door, (255, 160, 60)[door])):
            image[4 * place[1] + 1 : 4 * place[1] + 3, 4 * place[0] + 1 : 4 * place[0] + 3, 1] = value
        image[4 * y : 4 * y + 4, 4 * x : 4 * x + 4, 0] = 120
        dx, dy = MOVES[direction]
        image[4 * y + 1 + dy : 4 * y + 3 + dy, 4 * x + 1 + dx : 4 * x + 3 + dx, 2] = 255
        return image


def test_a_policy_clones_the_expert_and_succeeds():
    frames, actions = [], []
    for seed in range(16):
        room = OwnRoom()
        room.reset(seed)
        for action in plan(room.layout, room.state):
            frames.append(room.image())
            actions.append(ACTIONS.index(action))
            room.act(action)
    frames, actions = np.stack(frames), np.array(actions)
    data = ssdd.ImageSet("own", torch.from_numpy(frames), torch.from_numpy(frames[:4]))
    network = ssdd.seeded(lambda: ssdd.build("convnet-8-16", 3, data.size, 1), 0).eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    encoder = readout.Encoder(network.features, data.preprocessing, data.x_train)
    made, seeds = [OwnRoom() for _ in range(16)], list(range(16))

    def success(frozen, steps):
        policy = readout.clone(
            network, encoder, frames, actions, frozen=frozen, steps=steps, count=len(ACTIONS), seed=0
        )
        same = all(
            torch.equal(value, before[key]) for key, value in policy.backbone.state_dict(prefix="backbone.").items()
        )
        assert same == frozen
        return readout.success(policy, made, seeds, 40, ACTIONS)

    assert success(True, 1)[0] < 0.5
    share, strip = success(True, 150)
    assert share == 1.0 and len(strip) == len(plan(LAYOUT, (1, 1, 0, False, LOCKED))) + 1
    assert success(False, 80)[0] > 0.8
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_policy_that_runs_in_a_circle_is_stopped():
    class Turns:
        calls = 0

        def choose(self, images):
            self.calls += 1
            return [1] * len(images)  # turn right

    policy = Turns()
    assert readout.success(policy, [OwnRoom(), OwnRoom()], [0, 1], 1000, ACTIONS)[0] == 0
    assert policy.calls == 4


def test_probes_find_what_is_linear_and_nothing_else():
    g = torch.Generator().manual_seed(0)
    x, noise = torch.randn(400, 20, generator=g), torch.randn(400, 20, generator=g)
    y = x[:, :3] @ torch.randn(3, 2, generator=g) * 5 + 7
    label = (x[:, 0] > 0.8).long()
    a, b = slice(0, 300), slice(300, 400)
    assert readout.probe_state(x[a], y[a], x[b], y[b]) > 0.999
    assert readout.probe_state(noise[a], y[a], noise[b], y[b]) < 0.1
    rows = readout.draw_balanced(label[a], 100, 0)
    assert readout.probe_class(x[rows], label[rows], x[b], label[b]) > 0.85
    # always the larger class: a half, not its share
    assert readout.probe_class(0 * x[a], label[a], 0 * x[b], label[b]) == 0.5


def test_balanced_draws_take_turns():
    labels = torch.tensor([0] * 50 + [1] * 7 + [2] * 30)
    rows = readout.draw_balanced(labels, 30, 0)
    assert len(set(rows.tolist())) == 30
    assert labels[rows].bincount().tolist() in ([12, 7, 11], [11, 7, 12])
    assert not torch.equal(rows, readout.draw_balanced(labels, 30, 1))
    assert len(readout.draw_balanced(labels, 500, 0)) == 87


@pytest.fixture(scope="module")
def rooms():
    pytest.importorskip("minigrid", reason="NO MINIGRID HERE: real rooms were not tried (pip install '.[rl]')")
    from reinforcement_learning import rooms

    return rooms


@pytest.mark.parametrize("task", ["doorkey", "crossing"])
def test_the_planner_knows_the_rules_of_minigrid(rooms, task):
    room, draw = rooms.Room(task), random.Random(0)
    for layout in range(6):
        room.reset(layout)
        for _ in range(40):
            action = draw.choice(ACTIONS)
            expected = follow(room.layout, room.state, action)
            reached = room.act(action)
            assert room.state == expected and reached == (expected[:2] == room.layout.goal)
            if reached:
                break
        room.reset(layout)
        assert [room.act(action) for action in room.expert()][-1]


def test_labels_are_the_experts(rooms):
    found = rooms.labelled_frames("doorkey", 120, seed=0)
    frames, actions = rooms.expert_episodes("doorkey", 1, seed=0)
    assert found.frames.shape == (120, 24, 24, 3) and frames.shape[1:] == (24, 24, 3) and len(frames) == len(actions)
    assert set(found.near.tolist()) == {0, 1} and found.actions.max() < len(ACTIONS)
    assert len({image.tobytes() for image in frames}) == len(frames)  # all states look different
    assert np.array_equal(rooms.random_frames("doorkey", 30), rooms.random_frames("doorkey", 60)[:30])


def test_unseen_layouts_are_in_no_episode(rooms):
    room, seen, starts = rooms.Room("doorkey"), set(), set()
    for layout in range(15):
        room.reset(rooms.EPISODES + 20_000 + layout)
        seen.add(room.layout)
    found = rooms.unseen_layouts("doorkey", 30, seed=2, episodes=15)
    for layout in found:
        room.reset(layout)
        assert room.layout not in seen
        starts.add((room.layout, room.state))
    assert len(found) == len(starts) == 30
    with pytest.raises(ValueError, match="clone fewer episodes"):
        rooms.unseen_layouts("doorkey", 2, seed=0, episodes=1000)


SIZES = run.Sizes(
    frames=150,
    held_out=30,
    labelled=(20,),
    tested=60,
    episodes=(1,),
    frozen_steps=2,
    finetune_steps=2,
    layouts=3,
    limit=6,
)
RECIPE = Recipe(
    "convnet-8-16",
    replace(run.RECIPE.teacher, epochs=1, batch=64, widths=(8, 16), projector=16),
    replace(run.RECIPE.distill, images=5, steps=2, pool=1, batch=16, pool_steps=3, pool_lr=0.01),
    replace(run.RECIPE.pretrain, steps=2, lr=0.01),
)


def fill(name, folder):
    """All cells of a miniature, computed in two goes."""
    data, cells = run.Set(name, SIZES, folder), Cells(folder / "cells.jsonl", name, (SIZES, RECIPE))
    example = run.Control(data, Arms(data.images, RECIPE, folder), SIZES, cells)
    example.fill(0)
    found, lines = cells.read(), cells.file.read_text().splitlines(keepends=True)
    assert set(found) == set(example.keys(0))
    cells.file.write_text("".join(lines[:-1]))
    example.fill(0)
    assert cells.read() == found
    return found


def test_a_miniature_of_minigrid_fills_every_cell(rooms, tmp_path):
    found = fill("doorkey", tmp_path)
    assert len(found) == 2 * len(ARMS) + 2
    for (_, task, arm, *_), cell in found.items():
        measures = (
            ("action", "near")
            if task == run.PROBE
            else ("success",)
            if arm == run.RANDOM_POLICY
            else ("frozen", "finetuned")
        )
        assert all(0 <= cell[name] <= 1 for name in measures), (task, arm)
    run.draw_strip(tmp_path, "doorkey", 1, tmp_path / "strip.png")
    assert (tmp_path / "strip.png").stat().st_size > 500


def test_a_miniature_of_boxing_fills_every_cell(tmp_path):
    pytest.importorskip("ale_py", reason="NO ALE HERE: the Atari game was not tried (pip install '.[rl]')")
    from reinforcement_learning import boxing

    frames = boxing.random_frames(40, 0)
    assert frames.images.shape == (40, 42, 42, 1) and frames.state.shape == (40, 4) and set(frames.near) <= {0, 1}
    found = fill("boxing", tmp_path)
    assert len(found) == len(ARMS) + 1
    assert all(cell["state"] <= 1 and 0 <= cell["near"] <= 1 for cell in found.values())


def test_the_page_has_the_tables_of_its_cells(root, tmp_path):
    page, cells = root / PAGE, read_cells((root / PAGE).with_name("cells.jsonl"))
    copy = tmp_path / "page.md"
    copy.write_text(page.read_text())
    run.write_page(copy, cells, run.Sizes())
    assert copy.read_text() == page.read_text()
