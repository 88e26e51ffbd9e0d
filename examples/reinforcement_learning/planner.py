"""The expert: a shortest path over position, direction, key and door. It needs no environment."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

LEFT, RIGHT, FORWARD, PICK_UP, TOGGLE = 0, 1, 2, 3, 5
ACTIONS = (LEFT, RIGHT, FORWARD, PICK_UP, TOGGLE)
"""MiniGrid's numbers of the actions that the rooms need; the others (drop, done) are never taken."""
LOCKED, CLOSED, OPEN = 0, 1, 2
MOVES = ((1, 0), (0, 1), (-1, 0), (0, -1))
"""Direction -> step: right, down, left, up, as MiniGrid counts."""

Place = tuple[int, int]
State = tuple[int, int, int, bool, int]
"""Column, row, direction, whether the key is carried, and the door: LOCKED, CLOSED or OPEN."""


@dataclass(frozen=True)
class Layout:
    """What stays the same in a room."""

    walls: frozenset[Place]
    goal: Place
    door: Place | None = None
    key: Place | None = None
    """Where the key lies until it is picked up."""


def follow(layout: Layout, state: State, action: int) -> State:
    """Return the state after ``action``; the same state if it does nothing."""
    x, y, direction, carried, door = state
    if action in (LEFT, RIGHT):
        return x, y, (direction + (1 if action == RIGHT else -1)) % 4, carried, door
    front = (x + MOVES[direction][0], y + MOVES[direction][1])
    if action == FORWARD:
        blocked = front in layout.walls
        blocked |= front == layout.door and door != OPEN
        blocked |= front == layout.key and not carried
        return state if blocked else (*front, direction, carried, door)
    if action == PICK_UP and front == layout.key:
        return x, y, direction, True, door
    if action == TOGGLE and front == layout.door:
        if door == LOCKED:
            return x, y, direction, carried, OPEN if carried else LOCKED
        return x, y, direction, carried, CLOSED if door == OPEN else OPEN
    return state


def plan(layout: Layout, state: State) -> list[int]:
    """Return a shortest list of actions that leads to the goal, always the same one; empty at the goal.

    Raises:
        ValueError: if the goal cannot be reached.
    """
    came: dict[State, tuple[State, int] | None] = {state: None}
    waiting = deque([state])
    while waiting:
        here = waiting.popleft()
        if here[:2] == layout.goal:
            actions = []
            while (step := came[here]) is not None:
                here = step[0]
                actions.append(step[1])
            return actions[::-1]
        for action in ACTIONS:
            there = follow(layout, here, action)
            if there not in came:
                came[there] = (here, action)
                waiting.append(there)
    raise ValueError(f"layout: expected a goal that can be reached from {state}, got {layout}")
