"""Figures in words; no more is imported, as `mobileprune solve` answers at once."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Seconds in words: ``40 s``, ``12 min``, ``3 h 05 min``."""
    minutes = round(max(seconds, 0) / 60)
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def counted(number: int, noun: str) -> str:
    """``1 epoch``, ``4 epochs``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
