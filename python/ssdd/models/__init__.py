"""Networks, each a backbone (its output is the features) and a last linear layer (the predicted representation)."""

from .convnet import ConvNet
from .error import representation_error
from .features import frozen, in_chunks
from .network import Network, build, seeded, student
from .resnet import DEPTHS, ResNet
from .standard import standard_resnet

__all__ = [
    "DEPTHS",
    "ConvNet",
    "Network",
    "ResNet",
    "build",
    "frozen",
    "in_chunks",
    "representation_error",
    "seeded",
    "standard_resnet",
    "student",
]
