"""The user's images: found, decoded once, split, and described."""

from mobileprune.data.describe import DataReport, describe_data
from mobileprune.data.images import RESIZE_RULE, ImageData, Split, resize
from mobileprune.data.load import load_data

__all__ = ["RESIZE_RULE", "DataReport", "ImageData", "Split", "describe_data", "load_data", "resize"]
