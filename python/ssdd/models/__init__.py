"""Networks: a backbone, whose output is the features, and a last linear layer, which predicts the representation."""

from .convnet import ConvNet
from .count import count_multiply_adds, count_parameters
from .error import representation_error
from .features import batch_features, frozen, frozen_together, in_chunks
from .network import Network, build, build_stored, seeded, student, why_slow
from .outside import find_factory
from .resnet import DEPTHS, STEM_PADDING, ResNet, named_resnet, standard_resnet
from .scores import accuracy

__all__ = [
    "DEPTHS",
    "STEM_PADDING",
    "ConvNet",
    "Network",
    "ResNet",
    "accuracy",
    "batch_features",
    "build",
    "build_stored",
    "count_multiply_adds",
    "count_parameters",
    "frozen",
    "frozen_together",
    "find_factory",
    "in_chunks",
    "representation_error",
    "named_resnet",
    "seeded",
    "standard_resnet",
    "student",
    "why_slow",
]
