"""A device that is not there: its latencies come from the model in its profile, and everything says so."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from device_profiles.devices.base import Device, DeviceInfo, DeviceState, Predicted, Session
from device_profiles.errors import DeviceError
from device_profiles.latency_model import LatencyModel
from device_profiles.operators import count
from device_profiles.predict import NEEDS_A_DEVICE, predict
from device_profiles.profile import DeviceProfile


class PredictedDevice(Device):
    """Counts the work in a file and looks up what it costs; takes .onnx and .tflite files alike and runs none."""

    def __init__(self, profile: DeviceProfile) -> None:
        self.profile = profile

    def describe(self) -> DeviceInfo:
        runtime = f"predicted for {self.model(self.profile.threads).runtime}"
        return DeviceInfo(
            name=self.profile.name,
            kind=self.profile.kind,
            title=self.profile.title,
            soc=self.profile.soc or "not known",
            cores=self.profile.cores or self.profile.threads,
            os="none: no device is connected",
            runtimes={".onnx": runtime, ".tflite": runtime},
        )

    def state(self) -> DeviceState:
        return DeviceState(cores=self.profile.cores or self.profile.threads)

    def model(self, threads: int) -> LatencyModel:
        """The model for so many threads; raises DeviceError where there is none: threads are never extrapolated."""
        models = {one.threads: one for one in self.profile.latency}
        if threads not in models:
            known = " or ".join(str(one) for one in sorted(models))
            raise DeviceError(
                f"threads = {threads} cannot be predicted by the profile {self.profile.name}, which was fitted to "
                f"{known} threads; ask for that or connect the device"
            )
        return models[threads]

    def predictions(self, files: Mapping[str, Path], *, threads: int) -> dict[str, Predicted]:
        model = self.model(threads)
        return {name: self._predict(path, model) for name, path in files.items()}

    def session(
        self,
        files: Mapping[str, Path],
        *,
        threads: int,
        timeout_s: float,
        delegate: str = "cpu",
        core_mask: int | None = None,
    ) -> AbstractContextManager[Session]:
        raise DeviceError(
            f"the device {self.profile.name} is predicted, so nothing can be run or timed on it. {NEEDS_A_DEVICE}"
        )

    def clean_up(self) -> None:
        """Nothing was ever there."""

    def _predict(self, path: Path, model: LatencyModel) -> Predicted:
        work = count(path)
        try:
            one = predict(work, model)
        except DeviceError as error:
            raise DeviceError(f"{path}: {error}") from error
        why = f" ({self.profile.unreached})" if self.profile.unreached else ""
        return Predicted(
            latency_ms=one.latency_ms,
            low_ms=one.low_ms,
            high_ms=one.high_ms,
            relative_std=one.relative_std,
            runtime=f"predicted for {model.runtime}",
            warning=(
                f"the latencies are predicted, not measured{why}: {self.profile.name} was off by "
                f"{model.typical_error:.0%} on average and by {model.guaranteed_error:.0%} at most for families of "
                "networks that it had not seen"
            ),
        )
