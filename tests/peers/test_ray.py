"""Probes on a real Ray cluster: the same probes as in one process, and what a dead node or driver costs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mobileprune.engine import LocalEngine, RayEngine, make_engine
from mobileprune.errors import MobilepruneError, UsageError
from mobileprune.progress import Quiet
from mobileprune.request import Request, open_or_create
from mobileprune.run import Journal, Run
from mobileprune.stages.context import Context
from mobileprune.stages.finetune import finetune
from mobileprune.stages.probe import probe
from mobileprune.stages.profile import profile
from mobileprune.stages.prune import prune
from mobileprune.stages.settle import settle
from mobileprune.stages.solve import set_budgets

try:
    import ray
    from ray.cluster_utils import Cluster
except ModuleNotFoundError:
    if os.environ.get("MOBILEPRUNE_REQUIRE_PEERS"):
        raise
    pytest.skip("Ray is not installed", allow_module_level=True)

pytestmark = pytest.mark.timeout(600)  # nodes take their time to start where other programs run

TINY = Path(__file__).parents[1] / "mobileprune" / "tiny_net.py"
# Data that says on which node it was read, and waits there while a file "wait" lies beside it.
DATA = """
import os, time
from pathlib import Path
import numpy as np
FLIP = False
HERE = Path(__file__).parent
def digits():
    from sklearn.datasets import load_digits
    found = load_digits()
    if "RAY_JOB_ID" in os.environ:
        import ray
        context = ray.get_runtime_context()
        (HERE / f"read-{context.get_node_id()}-{os.getpid()}").touch()
        while (HERE / "wait").exists():
            time.sleep(0.05)
    if (HERE / "missing").exists() and "RAY_JOB_ID" in os.environ:
        raise FileNotFoundError("/disk/of/the/driver/digits")
    return (found.images * 15).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2), found.target
"""


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose base is trained and whose device is known."""
    folder = tmp_path_factory.mktemp("ray")
    (folder / "data.py").write_text(DATA)
    request = Request(
        model=f"{TINY}:tiny", model_arguments=("blocks=2",), data=f"{folder / 'data.py'}:digits", image_size=16,
        base_epochs=2, probe_epochs=1, epochs=1, probes=5, profile_scales=10, rounds=2, round_seconds=0.0,
        training_precision="float32",
    )  # fmt: skip
    run = open_or_create(folder / "run", request)
    set_budgets(run, ["1MMACs"])
    profile(Context(run, Quiet()))
    return run.path


@pytest.fixture(scope="module")
def local(profiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, probed and fine-tuned in this process."""
    path = tmp_path_factory.mktemp("local") / "run"
    shutil.copytree(profiled, path)
    journey(path, LocalEngine())
    return path


@pytest.fixture
def copied(profiled: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(profiled, tmp_path / "run")
    yield tmp_path / "run"
    ray.shutdown()  # a new driver gets new workers, which read the data again
    for left in (*profiled.parent.glob("read-*"), profiled.parent / "wait", profiled.parent / "missing"):
        left.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that runs no jobs and two nodes with a processor each; what tests kill is replaced."""
    os.environ["RAY_DISABLE_IMPORT_WARNING"] = "1"
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        found.add_node(num_cpus=1)
    yield found
    ray.shutdown()
    found.shutdown()


def journey(path: Path, engine: Any) -> None:
    ctx = Context(Run.open(path), Quiet(), engine)
    probe(ctx)
    settle(ctx)
    prune(ctx)
    finetune(ctx)


def outcome(path: Path) -> dict[tuple[str, str], Any]:
    """What was found, without when."""
    entries = Journal(path / "journal.jsonl").entries
    kinds = ("probe", "answer", "pruned", "finetuned")
    return {(e["kind"], e["key"]): {k: v for k, v in e.items() if k != "time"} for e in entries if e["kind"] in kinds}


def files(path: Path) -> dict[str, bytes]:
    found = [*path.glob("probes/*/*"), *path.glob("results/*/*")]
    return {str(p.relative_to(path)): p.read_bytes() for p in found if p.is_file()}


def times_done(path: Path) -> dict[str, int]:
    keys = [e["key"] for e in Journal(path / "journal.jsonl").entries if e["kind"] == "probe"]
    return {key: keys.count(key) for key in keys}


def test_the_same_probes_as_in_one_process(cluster: Any, copied: Path, local: Path) -> None:
    journey(copied, RayEngine(cluster.address))
    assert outcome(copied) == outcome(local)
    assert files(copied) == files(local)  # weights, bit by bit
    epochs = [e for e in Journal(copied / "journal.jsonl").entries if e["kind"] == "epoch"]
    curves = [(e["loss"], e["accuracy"]) for e in epochs if e["key"].startswith("probe")]
    assert len(curves) == 5  # they came back, too
    assert all(loss > 0 and 0 < accuracy <= 1 for loss, accuracy in curves)


def test_a_node_killed_in_the_middle_of_a_probe(cluster: Any, profiled: Path, copied: Path, local: Path) -> None:
    (profiled.parent / "wait").touch()
    killed: list[str] = []

    def kill() -> None:
        while not killed:
            for read in profiled.parent.glob("read-*"):
                node = next((n for n in cluster.worker_nodes if n.node_id == read.name.split("-")[1]), None)
                if node is not None:
                    cluster.remove_node(node, allow_graceful=False)
                    killed.append(node.node_id)
                    break
            time.sleep(0.05)
        (profiled.parent / "wait").unlink()

    engine = RayEngine(cluster.address)
    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    journey(copied, engine)
    killer.join(timeout=60)
    cluster.add_node(num_cpus=1)
    assert killed
    assert outcome(copied) == outcome(local)
    assert files(copied) == files(local)
    assert set(times_done(copied).values()) == {1}


_DRIVER = """
import sys
from pathlib import Path
from mobileprune.engine import RayEngine
from mobileprune.progress import Quiet
from mobileprune.run import Run
from mobileprune.stages.context import Context
from mobileprune.stages.probe import probe
probe(Context(Run.open(Path(sys.argv[1])), Quiet(), RayEngine(sys.argv[2])))
"""


def test_a_killed_driver_goes_on_where_it_was(cluster: Any, copied: Path, local: Path) -> None:
    command = [sys.executable, "-c", _DRIVER, str(copied), cluster.address]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        while not times_done(copied):
            assert driver.poll() is None
            time.sleep(0.05)
        driver.send_signal(signal.SIGKILL)
    before = Journal(copied / "journal.jsonl").entries
    assert 1 <= len(times_done(copied)) <= 5
    journey(copied, RayEngine(cluster.address))
    assert Journal(copied / "journal.jsonl").entries[: len(before)] == before
    assert outcome(copied) == outcome(local)
    assert set(times_done(copied).values()) == {1}


def test_a_worker_without_the_data_says_so(cluster: Any, profiled: Path, copied: Path) -> None:
    (profiled.parent / "missing").touch()
    with pytest.raises(MobilepruneError, match=r"probe at .* failed on node .*/disk/of/the/driver/digits.* every node"):
        journey(copied, RayEngine(cluster.address))
    assert not times_done(copied)


def test_engines_that_cannot_be(cluster: Any) -> None:
    with pytest.raises(UsageError, match="a job takes 64 CPU and the Ray cluster has 2 in all"):
        RayEngine(cluster.address, cpus=64)
    with pytest.raises(UsageError, match="no engine 'slurm'; there are local and ray"):
        make_engine("slurm")
    with pytest.raises(UsageError, match="--address is of a Ray cluster: add --engine ray"):
        make_engine("local", "auto")
    ray.shutdown()
    with pytest.raises(UsageError, match=r"no Ray cluster at 127\.0\.0\.1:1"):
        RayEngine("127.0.0.1:1")
