"""Networks that are not of this package: timm's, torchvision's, or those of a function of the user."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..config import InputError


def import_from_here(name: str) -> ModuleType:
    """Import a module of the user, from the current folder first, as ``python -m`` would.

    The folder stays on the path, at the end, for later imports of the module and for worker processes.
    """
    here = os.getcwd()
    own = here not in sys.path and "" not in sys.path
    sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(here)
        if own:
            sys.path.append(here)


def find_factory(place: str, attribute: str) -> Any:
    """Return the function ``attribute`` of the user's module ``place``; if it is not there, the error names the file
    that was imported, which may be another one than was meant."""
    module = import_from_here(place)
    if not hasattr(module, attribute):
        where = getattr(module, "__file__", None) or "built into Python, or a folder without __init__.py"
        raise AttributeError(f"the module {place} has no {attribute}; it is {where}")
    return getattr(module, attribute)


def outside_backbone(name: str, channels: int, size: tuple[int, int]) -> tuple[nn.Module, int]:
    """Return the network ``LIBRARY:NAME`` or ``package.module:factory`` without classifier, and its feature count.

    It has a random start. It is run once on one image of zeros: an :class:`InputError` says what does not fit.
    """
    place, _, attribute = name.partition(":")
    try:
        backbone = (
            LIBRARIES[place](attribute, channels)
            if place in LIBRARIES
            else find_factory(place, attribute)(channels, size)
        )
    except InputError:
        raise
    except Exception as error:  # code that is not ours may raise anything
        how = "" if place in LIBRARIES else "; it is called as factory(channels, (height, width))"
        raise InputError(f"model: {name} cannot be made ({type(error).__name__}: {error}{how})") from error
    if not isinstance(backbone, nn.Module):
        raise InputError(f"model: {name}: expected a torch.nn.Module, got {type(backbone).__name__}")
    return backbone, _dimension(backbone, name, channels, size)


@torch.no_grad()
def _dimension(backbone: nn.Module, name: str, channels: int, size: tuple[int, int]) -> int:
    """Return the number of features, from one image of zeros."""
    backbone.eval()
    try:
        y = backbone(torch.zeros(1, channels, *size))
    except Exception as error:  # the network's own words say what it cannot do
        raise InputError(
            f"model: {name} cannot run on images of {size[0]}x{size[1]} with {channels} channels "
            f"({type(error).__name__}: {error})"
        ) from error
    if not isinstance(y, Tensor) or y.dim() != 2 or len(y) != 1 or not y.shape[1]:
        came = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise InputError(
            f"model: {name}: expected features, one vector per image, a tensor [1, D] for one image, got {came}; "
            "wrap the network so that it pools or flattens its output"
        )
    backbone.train()
    return int(y.shape[1])


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"model: this name needs {name}, which is not installed: pip install {name}") from error
    except RuntimeError as error:  # its compiled part was built for another torch
        raise InputError(
            f"model: {name} is installed, but not for torch {torch.__version__} ({error}): install the version of "
            f"{name} that was built for it"
        ) from error


def _of_timm(name: str, channels: int) -> nn.Module:
    return _library("timm").create_model(name, pretrained=False, in_chans=channels, num_classes=0)


def _of_torchvision(name: str, channels: int) -> nn.Module:
    """Return torchvision's network without its last linear layer, the classifier, as it has no option for features."""
    if channels != 3:
        raise InputError(
            f"model: torchvision:{name} takes images of 3 channels, got {channels}; timm:NAME takes any number"
        )
    network: Any = _library("torchvision.models").get_model(name, weights=None)
    linear = [key for key, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise InputError(f"model: torchvision:{name} has no linear layer last, so its features are not known")
    network.set_submodule(linear[-1], nn.Identity())
    return network


LIBRARIES = {"timm": _of_timm, "torchvision": _of_torchvision}
"""The libraries that networks are taken from by name."""
