"""Images: digits, folders, CIFAR's files, .npz, Hugging Face sets. They are uint8, in memory or mapped.

Views are drawn by :mod:`.views` and not by kornia, which draws from torch's global generator. A run here has one
generator, which a checkpoint stores, and the crop, flip and affine views are about 60 lines of torch.
"""

from .convert import convert_images
from .device import CPU, DEVICES, choose_device, gather, keep_on_device, module_to_device, repeatable, to_device
from .dsa import DSA_OPERATIONS, Dsa, apply_dsa, draw_dsa
from .labels import unmatched_classes
from .load import load_images, load_target
from .order import Order
from .sets import ImageSet, one_line
from .stream import cache_directory, map_array, write_array
from .views import Crops, augment, crop, crop_and_flip, draw_crops

__all__ = [
    "CPU",
    "DEVICES",
    "DSA_OPERATIONS",
    "Crops",
    "Dsa",
    "ImageSet",
    "Order",
    "apply_dsa",
    "augment",
    "cache_directory",
    "choose_device",
    "convert_images",
    "crop",
    "crop_and_flip",
    "draw_crops",
    "draw_dsa",
    "gather",
    "keep_on_device",
    "load_images",
    "load_target",
    "map_array",
    "module_to_device",
    "one_line",
    "repeatable",
    "to_device",
    "unmatched_classes",
    "write_array",
]
