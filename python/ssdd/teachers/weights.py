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
from ..models import STEM_PADDING

ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".safetensors")
"""Endings of names of files of weights, in any case; ``.tar`` as in ``.pth.tar``."""
ONLINE = {"online", "query", "q", "base"}
TARGET = {"target", "momentum", "key", "k", "m"}
"""Words in the name of a network's moving average (TARGET) and of the network itself (ONLINE), in MoCo, BYOL and
later methods."""
NAMES = {name: name for name in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")}
"""The modules of a ResNet, without its classifier."""

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
        found = read_safetensors(path)[0] if str(path).lower().endswith(".safetensors") else read_torch(path)
    except InputError as error:
        asks = "it asks for" in str(error)
        advice = "; if you trust it, save its weights alone: torch.save(STATE_DICT, FILE)" if asks else ""
        raise InputError(f"teacher: {error}{advice}") from None
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

    ResNets that went through ``nn.Sequential(*resnet.children())`` have numbers for names and are included, with or
    without modules for ReLU and max-pool; and those that call their downsampling ``shortcut``. A classifier or
    projector beside a ResNet is left out.
    """
    found: dict[str, State] = {}
    for key in state:
        for stem in ("conv1.weight", "0.weight"):
            prefix = key.removesuffix(stem)
            if key == prefix or (prefix and not prefix.endswith(".")):
                continue
            network = _resnet(state, prefix, _module_names(state, prefix) if stem == "0.weight" else NAMES)
            if {"bn1.weight", "layer1.0.conv1.weight"} <= network.keys():
                found[prefix] = network
    return found


def _module_names(state: Mapping[str, Tensor], prefix: str) -> dict[str, str]:
    """Return the name of each numbered module: 0 and 1 are the stem, and the stages follow one another.

    Their first number is 2 to 4, as ReLU and max-pool take numbers if they are modules.
    """
    start = next((n for n in (2, 3, 4) if f"{prefix}{n}.0.conv1.weight" in state), None)
    if start is None:
        return {}
    return {"0": "conv1", "1": "bn1"} | {str(start + i): f"layer{i + 1}" for i in range(4)}


def _resnet(state: Mapping[str, Tensor], prefix: str, names: Mapping[str, str]) -> State:
    network = {}
    for key, value in state.items():
        if key.startswith(prefix):
            first, _, rest = key.removeprefix(prefix).partition(".")
            if first in names:
                network[f"{names[first]}.{rest}".replace(".shortcut.", ".downsample.")] = value
    return network


def stem_padding_of(state: Mapping[str, Tensor], prefix: str) -> int:
    """Return the padding of a 3x3 stem by the names of the weights.

    It is 1 in code that calls a downsampling ``shortcut``, or whose numbered modules have no max-pool. Otherwise it is
    that of this method's published networks.
    """
    keys = [key.removeprefix(prefix) for key in state if key.startswith(prefix)]
    numbers = [f"{n}.0.conv1.weight" for n in (2, 3)]
    other = any(".shortcut." in key for key in keys) or any(number in keys for number in numbers)
    return 1 if other else STEM_PADDING


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
        named = named or [p for p in found if p.startswith(f"{prefix.rstrip('.')}.")]  # teacher of teacher.backbone.
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
