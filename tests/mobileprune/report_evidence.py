"""A made-up run with known answers, for the tests that read a report."""

from __future__ import annotations

import json
from typing import Any

from mobileprune.report.evidence import Block, Choice, Curve, Evidence, Point, Slice, Untrained
from mobileprune.report.page import page
from mobileprune.scale import BASE, Scale

RESULT = Scale(0.5, 1.0, 0.75)
# Few MACs and still slower than the result: what "fewer FLOPs, slower" must find.
NARROW = Scale(1.0, 0.25, 1.0)


def point(scale: Scale, ms: float, macs: float, accuracy: float | None = None, layers: float = 1.0) -> Point:
    return Point(
        scale,
        accuracy,
        0.01,
        ms,
        0.98 * ms,
        1.02 * ms,
        ms,
        0.9 * ms,
        1.1 * ms,
        macs,
        {"layers": layers, "activations": 1},
    )


def choice(limit: float, scale: Scale, accuracy: float) -> Choice:
    spread = (accuracy, accuracy - 0.02, accuracy + 0.02)
    return Choice(
        limit, scale, spread, (limit * 0.9, limit * 0.8, limit), 1e6 * limit, 2e5, 3e4, 8e5, (f"{limit:.3g}ms", "2MB")
    )


def evidence() -> Evidence:
    base, result = point(BASE, 10.0, 100e6, 0.9), point(RESULT, 4.0, 30e6, 0.88, 0.5)
    narrow = point(NARROW, 6.0, 10e6, 0.5)
    chosen = [(2.0 + 0.08 * i, RESULT if i >= 25 else Scale(0.5, 0.5, 0.5), 0.6 + 0.003 * i) for i in range(100)]
    grid = [0.5, 0.75, 1.0]
    part = Slice("resolution", "width", "depth", 0.5, grid, grid, [[0.5, 0.6, 0.7]] * 3, [base, narrow], [True, False])
    return Evidence(
        base=base,
        result=result,
        probes=[narrow, result],
        measured=[base, result, narrow],
        frontier=[choice(*one) for one in chosen],
        slices=[part],
        blocks=[Block("stem", 10_000_000, 5_000_000), Block("stages.0", 40_000_000, None)],
        curves=[Curve("base", [1, 2], [2.0, 1.0], [0.5, 0.6]), Curve("probe 1 at x", [1], [0.9], [None])],
        untrained=[Untrained("width", [0.25, 0.75, 1.0], [2.0, 0.4, 0.0], 1.0)],
        limit_name="latency",
        limit_unit="ms",
        limit=5.0,
        origin="measured",
        latency_form="work",
        latency_error=0.05,
        accuracy_form="monotone",
        accuracy_error=0.004,
        halving=[("depth", 0.5, 0.52)],
        prices=("one more ms on latency is worth 0.4 points",),
        confidence=0.8,
    )


def summary(name: str = "demo") -> dict[str, Any]:
    def side(accuracy: float, ms: float, size: int) -> dict[str, Any]:
        latency = {"latency_ms": ms, "low_ms": 0.98 * ms, "high_ms": 1.02 * ms, "origin": "measured"}
        spec = {"channels": 3, "height": 24, "width": 24, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
        files = {
            kind: {
                "path": f"{name}/model.{kind}",
                "format": kind,
                "precision": "float32",
                "input": spec,
                "takes": "float32",
                "gives": "float32",
                "classes": 7,
                "size_bytes": size,
                "accuracy": accuracy,
                "test_accuracy": None,
                "parity_max_abs": 1e-6,
                "latency": latency,
            }
            for kind in ("onnx", "tflite")
        }
        score = {"accuracy": accuracy, "std": 0.01, "images": 100, "loss": 0.5}
        return {
            "accuracy": {"validation": score, "test": None},
            "macs": 1e8,
            "params": 2e5,
            "peak_activation_bytes": 4e6,
            "files": files,
        }

    kept = {"budget": "5ms", "quantity": "latency", "limit": 5.0, "value": 4.0, "kept": True, "verdict": "kept"}
    return {
        "run": name,
        "device": {"name": "host", "title": "this machine", "soc": "<b>cpu</b>"},
        "scale": {"depth": 0.5, "width": 1.0, "resolution": 0.75},
        "budgets": [{**kept, "origin": "measured"}],
        "base": side(0.9, 10.0, 2_000_000),
        "result": side(0.88, 4.0, 900_000),
        "warnings": ["the device was </script><script>alert(1)</script> warm"],
        "notes": [],
        "weights": f"{name}/weights.safetensors",
        "report": f"{name}/report.html",
    }


ASKED = {
    "model": {"name": "net", "library": "mobileprune", "arguments": {}},
    "data": {"spec": "digits"},
    "seed": 3,
    "versions": {"python": "3.11"},
}


def whole_page() -> str:
    return page(summary(), evidence(), ["scale x"], ASKED, "mobileprune optimize --seed 3", ["no bars: a reason"])


def embedded(text: str, key: str) -> Any:
    """The JSON of the script element with this id."""
    start = text.index(">", text.index(f"id={key}")) + 1
    return json.loads(text[start : text.index("</script>", start)])
