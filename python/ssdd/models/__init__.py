"""Networks: a backbone, whose output is the features, and a last linear layer, which predicts the representation."""

from .convnet import ConvNet
from .error import representation_error
from .features import batch_features, frozen, in_chunks
from .network import Network, build, seeded, student
from .resnet import DEPTHS, ResNet
from .standard import STEM_PADDING, standard_resnet

__all__ = [
    "DEPTHS",
    "STEM_PADDING",
    "ConvNet",
    "Network",
    "ResNet",
    "batch_features",
    "build",
    "frozen",
    "in_chunks",
    "representation_error",
    "seeded",
    "standard_resnet",
    "student",
]
