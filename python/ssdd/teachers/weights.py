"""Files of weights as users have them: nested names are joined, and the teacher is chosen if there are several
networks."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..artifact import read_safetensors, read_torch
from ..config import InputError

ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".safetensors")
"""Endings of names of files of weights, in any case; ``.tar`` as in ``.pth.tar``."""
ONLINE = {"online", "query", "q", "base"}
TARGET = {"target", "momentum", "key", "k", "m"}
"""Words in the name of a network's moving average (TARGET) and of the network itself (ONLINE), in MoCo, BYOL and
later methods."""
STAGES = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""Names of a ResNet's modules by their numbers in ``nn.Sequential(*list(resnet.children())[:-1])``."""

State = dict[str, Tensor]


@dataclass(frozen=True)
class Network:
    """One network of a file: the prefix of its names there, its weights without the prefix, and why it was chosen."""

    prefix: str
    state: State
    why: str

    @property
    def place(self) -> str:
        """The prefix in words, for messages; empty if the file has no other weights."""
        return "" if not self.prefix else f" under {self.prefix}{f' ({self.why})' if self.why else ''}"


def is_weights(name: str) -> bool:
    """Return True if ``name`` ends like a file of weights."""
    return name.lower().endswith(ENDINGS)


def read_weights(path: str | os.PathLike[str]) -> State:
    """Return all tensors of a file of safetensors or of ``torch.save``; names in nested dictionaries are joined by
    dots."""
    try:
        found = read_safetensors(path)[0] if str(path).endswith(".safetensors") else read_torch(path)
    except InputError as error:
        raise InputError(f"teacher: {error}") from None
    state = _flatten(found) if isinstance(found, dict) else {}
    if not state:
        came = type(found).__name__
        raise InputError(f"teacher: {Path(path).name}: expected a state dict, tensors by name, got {came}")
    return state


def _flatten(found: Mapping[Any, Any]) -> State:
    state, seen = {}, set()
    waiting: list[tuple[str, Any]] = [("", found)]
    while waiting:
        prefix, value = waiting.pop()
        if isinstance(value, Tensor):
            state[prefix] = value
        elif isinstance(value, Mapping) and id(value) not in seen:  # a hostile file may contain itself
            seen.add(id(value))
            start = f"{prefix}." if prefix else ""
            waiting += [(f"{start}{key}", inner) for key, inner in reversed(list(value.items()))]
    return state


def resnets(state: Mapping[str, Tensor]) -> dict[str, State]:
    """Return the ResNets under torchvision's names in ``state``, by the prefix that their names have there.

    ResNets that went through ``nn.Sequential(*resnet.children())`` have numbers for names and are included. A
    classifier or projector beside a ResNet is left out.
    """
    found: dict[str, State] = {}
    for key in state:
        for stem, renamed in (("conv1.weight", False), ("0.weight", True)):
            prefix = key.removesuffix(stem)
            if key == prefix or (prefix and not prefix.endswith(".")):
                continue
            network = _resnet(state, prefix, renamed)
            if {"bn1.weight", "layer1.0.conv1.weight"} <= network.keys():
                found[prefix] = network
    return found


def _resnet(state: Mapping[str, Tensor], prefix: str, renamed: bool) -> State:
    if f"{prefix}{'4' if renamed else 'layer1'}.0.conv1.weight" not in state:
        return {}
    network = {}
    for key, value in state.items():
        if key.startswith(prefix):
            first, _, rest = key.removeprefix(prefix).partition(".")
            first = STAGES.get(first, "") if renamed else first
            if first in STAGES.values():
                network[f"{first}.{rest}"] = value
    return network


def find_fitting(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, State]:
    """Return the parts of ``state`` with exactly the names and shapes of ``target``, by prefix."""
    shapes = {key: value.shape for key, value in target.items()}
    parts = {
        prefix: select_prefix(state, prefix) for prefix, n in _shared_names(state, target).items() if n == len(target)
    }
    return {p: part for p, part in parts.items() if {k: v.shape for k, v in part.items()} == shapes}


def find_nearest(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> State:
    """Return the part of ``state`` that shares most names with ``target``, for the message that it does not fit."""
    shared = _shared_names(state, target)
    return select_prefix(state, max(shared, key=lambda prefix: shared[prefix]) if shared else "")


def select_prefix(state: Mapping[str, Tensor], prefix: str) -> State:
    """Return the tensors whose names begin with ``prefix``, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _shared_names(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Counter[str]:
    """Count the names of ``target`` that ``state`` has under each prefix."""
    shared: Counter[str] = Counter()
    for key in state:
        words = key.split(".")
        for i in range(len(words)):
            if ".".join(words[i:]) in target:
                shared["".join(f"{word}." for word in words[:i])] += 1
    return shared


def choose_network(found: Mapping[str, State], prefix: str | None, file: str) -> Network:
    """Choose a network of ``found``: the one that ``prefix`` names, the only one, or, of two, the one that is trained.

    The one that is trained is MoCo's query or BYOL's online encoder, whatever the order in the file. Networks with
    equal weights count once. Raises :class:`InputError` with the prefixes for any other choice.
    """
    if prefix is not None:
        named = [p for p in found if p.rstrip(".") == prefix.rstrip(".")]
        named = named or [p for p in found if f".{p}".endswith(f".{prefix.rstrip('.')}.")]
        if len(named) != 1:
            what = "no network" if not named else f"{len(named)} networks"
            raise InputError(
                f"teacher prefix: {file}: expected one of {_join_prefixes(found)}, got {prefix!r} ({what})"
            )
        return Network(named[0], found[named[0]], "as --teacher-prefix says")
    different: list[list[str]] = []
    for p in found:
        same = next((group for group in different if _equal(found[p], found[group[0]])), None)
        if same is None:
            different.append([p])
        else:
            same.append(p)
    if len(different) == 1:
        p = different[0][0]
        others = different[0][1:]
        return Network(p, found[p], f"the same as {_join_prefixes(others)}" if others else "")
    if len(different) == 2:
        for mine, other in (different, different[::-1]):
            for a in mine:
                for b in other:
                    if is_average_of(b, a):
                        return Network(a, found[a], f"not its moving average {b}; --teacher-prefix takes another")
    raise InputError(
        f"teacher: {file} holds {len(different)} different networks, and names do not tell which is the "
        f"teacher; give --teacher-prefix, one of {_join_prefixes(found)}"
    )


def is_average_of(target: str, online: str) -> bool:
    """Return True if ``target`` is named as the moving average of ``online``, as encoder_k is of encoder_q."""
    a, b = (prefix.rstrip(".").split(".") for prefix in (online, target))
    apart = [(x, y) for x, y in zip(a, b, strict=False) if x != y]
    if len(a) != len(b) or len(apart) != 1:
        return False
    x, y = (set(re.split(r"[_-]", word.lower())) for word in apart[0])
    return bool(y & TARGET) and not x & TARGET and x - ONLINE == y - TARGET


def _equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def _join_prefixes(prefixes: Iterable[str]) -> str:
    return ", ".join(prefix or "'' (no prefix)" for prefix in prefixes)
