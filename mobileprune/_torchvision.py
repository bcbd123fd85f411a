"""Imports torchvision (and timm, which needs it) also beside a CPU-only build of torch.

The registry's torchvision is compiled against the CUDA build. Beside a CPU-only torch its native library does not load,
and the import then fails on an operator's missing schema. The schemas alone, without kernels, are enough for models and
transforms: only detection's non-maximum suppression and torchvision's own image codec stay out of reach.
"""

from __future__ import annotations

import importlib
import os
import threading
import warnings
from types import ModuleType
from typing import Any

from mobileprune.errors import MobilepruneError

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# torchvision says this of an image codec that is not used here; with this variable set the user asked to hear it.
_CODEC_WARNING = r"Failed to load ('image' extension|image Python extension)"
_ASKED_FOR = "TORCHVISION_WARN_WHEN_EXTENSION_LOADING_FAILS"
_lock = threading.Lock()
_library: Any = None  # the schemas live as long as this object


def import_torchvision() -> ModuleType:
    """torchvision, ready to use; calling again is free. Raises MobilepruneError where it is not installed."""
    global _library
    with _lock, warnings.catch_warnings():
        if not os.environ.get(_ASKED_FOR):
            warnings.filterwarnings("ignore", message=_CODEC_WARNING)
        try:
            return _import("torchvision")
        except RuntimeError as error:
            if _library is not None or "torchvision::nms does not exist" not in str(error):
                raise
        import torch

        _library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            _library.define(schema)
        return _import("torchvision")


def import_timm() -> ModuleType:
    """timm, ready to use. Raises MobilepruneError where it is not installed."""
    import_torchvision()
    return _import("timm")


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise MobilepruneError(f"{name} is not installed; run: pip install {name}") from error
