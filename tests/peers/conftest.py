"""The phone, raised once for all tests that ask for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from phones import SERIAL, Phone, raised

from device_profiles.devices.adb import AdbDevice
from device_profiles.profile import DeviceProfile, load_profile

# Two threads add in another order than one, and which number trains faster depends on what else runs: tests that
# compare weights bit by bit, across processes, need the same number in all of them.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def raised_phone() -> Iterator[Phone]:
    with raised() as phone:
        yield phone


@pytest.fixture(scope="session")
def tflite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of which XNNPACK takes all nodes but one, the cumulative sum in the middle."""
    litert_torch = pytest.importorskip("litert_torch", reason="needs the extra: pip install 'mobileprune[tflite]'")
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8))
            self.classes = nn.Linear(8, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.classes(torch.cumsum(self.features(x).mean((2, 3)), 1)).softmax(1)

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tflite") / "a 'small' net; $(touch gotcha) `id` \"x\" \\n.tflite"
    litert_torch.convert(Net().eval(), (torch.zeros(1, 3, 9, 9),)).export(str(path))
    return path


@pytest.fixture(scope="session")
def profile(raised_phone: Phone) -> DeviceProfile:
    return replace(load_profile("host"), name="phone", kind="adb", runtime="litert", format="tflite", address=SERIAL)


@pytest.fixture(scope="session")
def shared(raised_phone: Phone, profile: DeviceProfile) -> Iterator[AdbDevice]:
    """One device for all tests, which so share what it keeps on the phone; `clean_up` takes everything away."""
    untouched = raised_phone.written()
    device = AdbDevice(profile)
    yield device
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOBILEPRUNE_ADB", raised_phone.command)
        device.clean_up()
    assert raised_phone.written() == untouched
    assert "mobileprune" not in raised_phone.call("shell", "ls /data/local/tmp")


@pytest.fixture
def phone(raised_phone: Phone, monkeypatch: pytest.MonkeyPatch) -> Iterator[Phone]:
    """The phone, checked to be left without a process of ours and without a file outside our folder."""
    monkeypatch.setenv("MOBILEPRUNE_ADB", raised_phone.command)
    monkeypatch.delenv("MOBILEPRUNE_BENCHMARK_MODEL", raising=False)
    yield raised_phone
    raised_phone.wait_for_no_runner()
    assert {
        name for name in raised_phone.written() if not name.startswith(("data/local/tmp/mobileprune/", "phone/"))
    } == set()


@pytest.fixture
def device(phone: Phone, shared: AdbDevice) -> AdbDevice:
    return shared
