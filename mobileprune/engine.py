"""Where probes and final fine-tunings run: in this process, or as tasks of a Ray cluster.

A job is the same piece of work in both: it reads and writes a run folder. On a cluster that is a folder of the worker's
own, holding just what the job needs; its files and journal entries come back to the one run.
"""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
import traceback
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mobileprune.errors import MobilepruneError, UsageError
from mobileprune.run import Entry, Run, writing
from mobileprune.scale import BASE, Scale

if TYPE_CHECKING:
    from mobileprune.stages.context import Context

_CONNECT_S = 5.0
_RETRIES = 3  # how often a job is begun again elsewhere when its worker or node dies
# What a worker must know of the run beside the job's own files: entries of these kinds.
_SHARED_KINDS = ("data", "base", "ranking", "training")
_INPUTS = {"probe": ("recipe.json", "weights.safetensors"), "finetuned": ("recipe.json", "pruned.safetensors")}
_OUTPUTS = {"probe": ("recipe.json", "weights.safetensors"), "finetuned": ("weights.safetensors",)}


@dataclass(frozen=True)
class Job:
    """A probe of ``scale``, cut from its parent's weights, or the final fine-tuning of its pruned network.

    kind: as in the journal. name: of the training, for people.
    """

    kind: Literal["probe", "finetuned"]
    name: str
    scale: Scale
    parent: Scale | None = None

    @property
    def key(self) -> str:
        from mobileprune.stages.records import scale_key

        return scale_key(self.scale)

    @property
    def inputs(self) -> list[str]:
        """Files below the run folder that the job reads, beside the base."""
        from mobileprune.stages.records import scale_key

        if self.kind == "finetuned":
            return [f"results/{self.key}/{name}" for name in _INPUTS[self.kind]]
        if self.parent is None or self.parent == BASE:
            return []
        return [f"probes/{scale_key(self.parent)}/{name}" for name in _INPUTS[self.kind]]

    @property
    def outputs(self) -> list[str]:
        """Files below the run folder that the job leaves."""
        folder = "probes" if self.kind == "probe" else "results"
        return [f"{folder}/{self.key}/{name}" for name in _OUTPUTS[self.kind]]


class Engine(Protocol):
    """Runs jobs. A job that is done is in the journal, and its files in the run folder, before ``wait`` returns it."""

    @property
    def processes(self) -> int | None:
        """How many processes of this machine train one network together; None: one for each GPU."""

    @property
    def pending(self) -> int:
        """Jobs submitted and not yet returned."""

    def submit(self, ctx: Context, job: Job) -> None:
        """Take a job on. Everything it reads must be in the run folder."""

    def wait(self, ctx: Context) -> tuple[Job, Entry]:
        """The next job that is done, and its journal entry. Raises MobilepruneError where it cannot be done.

        Where anything is raised, Ctrl-C too, all jobs are given up: who goes on submits them anew.
        """

    def cancel(self) -> None:
        """Give up all jobs that are pending."""


class LocalEngine:
    """One job after the other, in this process or by several that train together: one for each GPU by default."""

    def __init__(self, processes: int | None = None) -> None:
        self.processes = processes
        self._jobs: deque[Job] = deque()

    @property
    def pending(self) -> int:
        return len(self._jobs)

    def submit(self, ctx: Context, job: Job) -> None:
        self._jobs.append(job)

    def wait(self, ctx: Context) -> tuple[Job, Entry]:
        from mobileprune.stages.train import forget

        job = self._jobs.popleft()
        try:
            entry = ctx.run.journal.append(job.kind, job.key, **_work(ctx, job))
            forget(ctx, job.name)
        except BaseException:
            self.cancel()
            raise
        return job, entry

    def cancel(self) -> None:
        self._jobs.clear()


def _work(ctx: Context, job: Job) -> Mapping[str, Any]:
    from mobileprune.stages.finetune import finetune_one
    from mobileprune.stages.probe import probe_one

    return probe_one(ctx, job) if job.kind == "probe" else finetune_one(ctx, job)


@dataclass(frozen=True)
class Parcel:
    """Files by their place below a run folder, and journal entries."""

    files: Mapping[str, bytes]
    entries: tuple[Entry, ...] = ()

    @classmethod
    def of(cls, run: Run, names: list[str], kinds: tuple[str, ...] = ()) -> Parcel:
        entries = tuple(e for e in run.journal.entries if e["kind"] in kinds)
        return cls({name: (run.path / name).read_bytes() for name in names}, entries)

    def unpack(self, path: Path) -> None:
        """Write the files below ``path``, each whole or not at all."""
        for name, content in self.files.items():
            with writing(path / name) as temporary:
                temporary.write_bytes(content)

    @property
    def key(self) -> str:
        digest = hashlib.sha256(repr(self.entries).encode())
        for name in sorted(self.files):
            digest.update(name.encode() + self.files[name])
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class _Answer:
    """What a worker sends back: the job's files and entries, or why there are none."""

    node: str
    parcel: Parcel | None = None
    entry: Mapping[str, Any] | None = None
    error: str | None = None


class RayEngine:
    """Jobs as tasks of a Ray cluster, each with its CPUs and GPUs; a job whose node dies is begun again on another.

    address: of a running cluster ("auto", "host:port" or "ray://..."); without one Ray is started on this machine.
    cpus, gpus: what each job takes; a GPU each by default where the cluster has any. mobileprune and the data must be
    on every node, under the same path. A job that takes several GPUs trains on all of them.
    """

    processes: int | None = None

    def __init__(self, address: str | None = None, cpus: float = 1, gpus: float | None = None) -> None:
        self._ray = _import_ray()
        if not self._ray.is_initialized():
            _check_address(address)
            try:
                self._ray.init(
                    address=address,
                    include_dashboard=False if address is None else None,
                    log_to_driver=False,
                    logging_level="warning",
                )
            except (ConnectionError, RuntimeError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise UsageError(f"no Ray cluster at {address or 'this machine'}: {reason}") from error
        found = self._ray.cluster_resources()
        gpus = (1.0 if found.get("GPU") else 0.0) if gpus is None else gpus
        for name, wanted in (("CPU", cpus), ("GPU", gpus)):
            if found.get(name, 0) < wanted:
                raise UsageError(f"a job takes {wanted:g} {name} and the Ray cluster has {found.get(name, 0):g} in all")
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": _RETRIES}
        self._task = self._ray.remote(**options)(_remote_work)
        self._jobs: dict[Any, Job] = {}
        self._shared: dict[str, Any] = {}

    @property
    def pending(self) -> int:
        return len(self._jobs)

    def submit(self, ctx: Context, job: Job) -> None:
        shared = Parcel.of(ctx.run, ["run.toml", "base/weights.safetensors"], _SHARED_KINDS)
        if shared.key not in self._shared:  # sent to each node once, not with every job
            self._shared[shared.key] = self._ray.put(shared)
        self._jobs[self._task.remote(self._shared[shared.key], Parcel.of(ctx.run, job.inputs), job)] = job

    def wait(self, ctx: Context) -> tuple[Job, Entry]:
        try:
            return self._wait(ctx)
        except BaseException:
            self.cancel()
            raise

    def _wait(self, ctx: Context) -> tuple[Job, Entry]:
        with ctx.display.work("training", f"{self.pending} under way or waiting on the cluster", 1):
            (done,), _ = self._ray.wait(list(self._jobs), num_returns=1)
        job = self._jobs.pop(done)
        try:
            answer: _Answer = self._ray.get(done)
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise MobilepruneError(
                f"{job.name} was lost {_RETRIES + 1} times with its worker ({reason}); "
                "look at the cluster and run the same command again"
            ) from error
        if answer.error is not None or answer.parcel is None or answer.entry is None:
            raise MobilepruneError(f"{job.name} failed on node {answer.node}: {answer.error}")
        answer.parcel.unpack(ctx.run.path)
        for entry in answer.parcel.entries:
            _record(ctx.run, entry)
        return job, ctx.run.journal.append(job.kind, job.key, **answer.entry)

    def cancel(self) -> None:
        left = list(self._jobs)
        self._jobs.clear()
        for task in left:
            self._ray.cancel(task, force=True)


def _check_address(address: str | None) -> None:
    """Ray itself tries for minutes to reach a cluster that is not there. Raises UsageError at once."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return  # "auto", or none
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise UsageError(f"no Ray cluster at {address}: {error.strerror or error}") from error


def _record(run: Run, entry: Entry) -> None:
    """Write an entry of one journal into another."""
    run.journal.append(**{name: value for name, value in entry.items() if name != "time"})


def _import_ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MobilepruneError("--engine ray needs Ray; run: pip install 'mobileprune[ray]'") from error
    return ray


_folders: list[tempfile.TemporaryDirectory[str]] = []  # they go with the worker
_contexts: dict[str, Any] = {}  # of the runs that this worker process has seen: a base is traced once, not for each job


def _remote_work(shared: Parcel, own: Parcel, job: Job) -> _Answer:
    """On a worker: do ``job`` in a run folder of its own. What goes wrong is said in words, not raised as a pickle."""
    import torch

    from mobileprune.progress import Quiet
    from mobileprune.stages.context import Context

    node = os.uname().nodename
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))
    try:
        if shared.key not in _contexts:
            folder = tempfile.TemporaryDirectory(prefix="mobileprune-")
            _folders.append(folder)
            shared.unpack(Path(folder.name))
            run = Run.open(Path(folder.name))
            for entry in shared.entries:
                _record(run, entry)
            _contexts[shared.key] = Context(run, Quiet())
        ctx = _contexts[shared.key]
        own.unpack(ctx.run.path)
        before = len(ctx.run.journal.entries)
        found = _work(ctx, job)
        outputs = Parcel.of(ctx.run, job.outputs)
        return _Answer(node, Parcel(outputs.files, tuple(ctx.run.journal.entries[before:])), found)
    except MobilepruneError as error:
        return _Answer(node, error=f"{error}; every node needs the same files under the same paths")
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return _Answer(node, error=f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})")


def make_engine(
    name: str = "local",
    address: str | None = None,
    cpus: float = 1,
    gpus: float | None = None,
    processes: int | None = None,
) -> Engine:
    """``local`` or ``ray``. Raises UsageError for another name, and for what is of the other engine."""
    if name == "local":
        if address is not None:
            raise UsageError("--address is of a Ray cluster: add --engine ray")
        return LocalEngine(processes)
    if name == "ray":
        if processes is not None:
            raise UsageError("--processes is of one machine; with --engine ray each job trains on its own: --job-gpus")
        return RayEngine(address, cpus, gpus)
    raise UsageError(f"no engine {name!r}; there are local and ray")
