"""The machine this runs on, measured through worker processes: a runtime that crashes cannot take the caller along."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from device_profiles.devices.base import Device, DeviceInfo, DeviceState, Session, check_delegate
from device_profiles.profile import DeviceProfile
from device_profiles.runners import worker
from device_profiles.runners.client import WorkerClient, WorkerSession, missing_runtimes

_BUSY_SAMPLE_S = 0.25


class HostDevice(Device):
    """This machine. Each file gets a worker process of its own: its peak memory and its crash are its own, too."""

    def __init__(self, profile: DeviceProfile) -> None:
        self.profile = profile
        self._clients: set[WorkerClient] = set()

    def describe(self) -> DeviceInfo:
        runtimes = worker.runtimes()
        system = f"{platform.system()} {platform.release()} {platform.machine()}"
        return DeviceInfo(
            name=self.profile.name,
            kind=self.profile.kind,
            title=self.profile.title,
            soc=self.profile.soc or _processor_name(),
            cores=_cores(),
            os=system,
            runtimes=runtimes,
            abi=platform.machine(),
            hints=missing_runtimes(runtimes),
        )

    def state(self) -> DeviceState:
        """Takes a quarter of a second, in which it watches what other programs do."""
        busy = psutil.cpu_percent(interval=_BUSY_SAMPLE_S) / 100
        return DeviceState(
            cores=_cores(),
            busy=busy,
            load_1m=os.getloadavg()[0],
            governor=_governor(),
            temperature_c=_temperature_c(),
        )

    @contextlib.contextmanager
    def session(
        self,
        files: Mapping[str, Path],
        *,
        threads: int,
        timeout_s: float,
        delegate: str = "cpu",
        core_mask: int | None = None,
    ) -> Iterator[Session]:
        check_delegate(delegate, self.describe())
        clients: dict[str, WorkerClient] = {}
        try:
            for name, path in files.items():
                clients[name] = self._start(str(path), threads)
            session = WorkerSession(clients, timeout_s)
            for name, path in files.items():
                session.load(name, str(path.resolve()), threads=threads, core_mask=core_mask)
            yield session
        finally:
            self._end(list(clients.values()))

    def clean_up(self) -> None:
        self._end(list(self._clients))

    def _end(self, clients: list[WorkerClient]) -> None:
        for client in clients:
            client.close()
            self._clients.discard(client)

    def _start(self, label: str, threads: int) -> WorkerClient:
        # -P: the folder of worker.py must not shadow modules of the runtimes.
        command = [sys.executable, "-P", str(Path(worker.__file__))]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1"}
        client = WorkerClient(command, label, environment)
        self._clients.add(client)
        return client


def _cores() -> int:
    """The processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def _processor_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _governor() -> str | None:
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return None


def _temperature_c() -> float | None:
    read = getattr(psutil, "sensors_temperatures", None)  # absent on macOS
    readings = [sensor.current for chip in read().values() for sensor in chip] if read else []
    return max(readings, default=None)
