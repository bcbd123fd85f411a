"""A measurement in which the base strays from what it took before is not believed at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from device_profiles.benchmark import Measurement
from mobileprune.progress import Quiet
from mobileprune.run import Run
from mobileprune.stages import profile
from mobileprune.stages.context import Context
from mobileprune.stages.problem import careful_rounds


class Report:
    """What a benchmark gives, as far as it is read here."""

    def __init__(self, base_ms: float) -> None:
        self.measurements: Mapping[str, Measurement] = {
            "base": Measurement(base_ms, base_ms, base_ms, base_ms, base_ms, (), 1, 0.0, None, "onnxruntime", 1)
        }


@pytest.mark.parametrize(
    ("before", "sessions", "taken"),
    [
        ([], [7.0], 7.0),  # the first of a run has nothing to agree with
        ([5.0], [5.2], 5.2),
        ([5.0, 6.0], [6.1], 6.1),  # as in one session of several
        ([5.0], [6.0, 5.1], 5.1),  # a moment that is over
        ([5.0], [6.0, 6.1], 6.1),  # the device has slowed down
        ([5.0], [6.0, 7.0, 8.0], 8.0),  # it never settles
    ],
)
def test_a_measurement_is_repeated_until_the_base_agrees_with_another(
    before: list[float], sessions: list[float], taken: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(tmp_path / "run", {"device": "host", "measuring": {"rounds": 7}})
    for number, ms in enumerate(before):
        run.journal.append("latency", f"scale {number}", base_ms=ms)
    left = iter(sessions)
    monkeypatch.setattr(profile, "_measure_once", lambda ctx, files, rounds: Report(next(left)))
    told: list[str] = []
    display = Quiet()
    monkeypatch.setattr(display, "say", lambda text, style="": told.append(text))
    report = profile.measure(Context(run, display), {"base": tmp_path / "base.onnx"}, "base")
    assert report.measurements["base"].latency_ms == taken
    assert list(left) == []
    words = [f"the base took {ms:.3g} ms" for ms in (sessions if taken == 8.0 else sessions[:-1])]
    assert [text.partition(",")[0] for text in told] == words
    assert [text.endswith("measured again") for text in told] == [True, True, False][: len(told)]


def test_the_rounds_are_those_asked_for_unless_more_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = Context(Run.create(tmp_path / "run", {"device": "host", "measuring": {"rounds": 7}}), Quiet())
    asked: list[int] = []

    def once(ctx: Context, files: Mapping[str, Path], rounds: int) -> Report:
        asked.append(rounds)
        return Report(5.0)

    monkeypatch.setattr(profile, "_measure_once", once)
    for rounds in (0, careful_rounds(ctx.run)):
        profile.measure(ctx, {"base": tmp_path / "base.onnx"}, "base", rounds)
    assert asked == [7, 28]
