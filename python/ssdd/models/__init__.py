"""Networks, each a backbone (its output is the features) and a last linear layer (the predicted representation)."""

from .convnet import ConvNet
from .error import representation_error
from .features import frozen, in_chunks
from .network import Network, build, seeded, student
from .outside import import_from_here
from .resnet import DEPTHS, STEM_PADDING, ResNet, named_resnet, standard_resnet
from .scores import accuracy

__all__ = [
    "DEPTHS",
    "STEM_PADDING",
    "ConvNet",
    "Network",
    "ResNet",
    "accuracy",
    "build",
    "frozen",
    "import_from_here",
    "in_chunks",
    "representation_error",
    "named_resnet",
    "seeded",
    "standard_resnet",
    "student",
]
