"""When memory is short: the same step in smaller parts."""

from __future__ import annotations

import gc

import torch
from torch import Tensor

_CPU_WORDS = ("can't allocate memory", "not enough memory")  # of torch's allocator on Linux and macOS, on Windows


class TooLargeError(Exception):
    """Memory is short in one of several processes that train together: ``at_once`` images in each may fit."""

    def __init__(self, message: str, at_once: int) -> None:
        super().__init__(message)
        self.at_once = at_once


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out, on a GPU or on the CPU (a plain RuntimeError there)."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _CPU_WORDS)


def release() -> None:
    """Give back what a failed attempt still holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def parts(batch: Tensor, most: int) -> tuple[Tensor, ...]:
    """``batch`` in near-equal parts of about ``most``, each of two or more: batch norm cannot train on one."""
    count = min(-(-len(batch) // most), max(len(batch) // 2, 1))
    return batch.tensor_split(count)
