"""Google's `benchmark_model`, TFLite's own tool for phones: its command line, and what its output means.

It times one file per call and prints, among much else, one line of statistics of the warm-up and one of the timed runs:

    count=25 first=187533 curr=140990 min=140071 max=195121 avg=145528 std=13583 p5=140545 median=141253 p95=187533

in microseconds; `count=3 curr=140990` when all runs took the same. Older builds lack p5, median and p95. What is said
of delegates has changed with the years, too; all known forms are read here. Nothing is run here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from device_profiles.devices.base import Delegation, Loaded, Round
from device_profiles.errors import DeviceError

RUNTIME = "benchmark_model"
SUFFIXES = (".tflite",)
DELEGATES = {"cpu": "xnnpack", "gpu": "gpu", "nnapi": "nnapi"}  # ours -> the name in its flags
_TITLES = {"cpu": "XNNPACK", "gpu": "GPU", "nnapi": "NNAPI"}
_WARM_UP_RUNS = 1

_NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?"
_COUNT = re.compile(
    r"(?<!\S)count=(\d+)((?:[ \t]+\w+=" + _NUMBER + r")+)(?:[ \t]*\(all same\))?[ \t\r]*$", re.MULTILINE
)
_FIELD = re.compile(rf"(\w+)=({_NUMBER})")
# The last line of a run, now and before 2020.
_END = re.compile(
    rf"Inference timings in us: Init: (?P<init>{_NUMBER}), .*Inference \(avg\): (?P<avg>{_NUMBER})\s*$"
    rf"|Average inference timings in us: .*Init: (?P<old_init>{_NUMBER}), (?:Inference|no stats): "
    rf"(?P<old_avg>{_NUMBER})\s*$",
    re.MULTILINE,
)
_SESSION = re.compile(rf"Initialized session in ({_NUMBER})\s*ms")
_MEMORY = re.compile(rf"peak memory footprint \(MB\).*?: ({_NUMBER})\s*$", re.MULTILINE)
_MEMORY_DELTA = re.compile(rf"Memory footprint delta .*\(MB\):.*overall=({_NUMBER})", re.MULTILINE)
_REPLACED = re.compile(r"Replacing (\d+)(?: out of (\d+))? node\(s\) with delegate \(([^)]*)\)")
_APPLIED = re.compile(
    r"(?:Explicitly applied|Though) (\w+) delegate,? (?:is explicitly applied|and)?,? ?the model graph will "
    r"(?:be (completely|partially)|(not) be) executed"
)
_TROUBLE = re.compile(r"^(?:ERROR: ?)?(.*(?:failed|error|not (?:found|supported)|cannot|could not).*)$", re.I | re.M)
_ROUNDED = 0.01  # two averages of the same runs, printed with different digits


@dataclass(frozen=True)
class Output:
    """What one call found: how loading went, and its timed runs as one round."""

    loaded: Loaded
    round: Round


def command(
    binary: str,
    graph: str,
    *,
    threads: int,
    min_runs: int,
    min_seconds: float,
    delegate: str = "cpu",
    core_mask: int | None = None,
) -> list[str]:
    """The arguments that time `graph` at least so often and so long; nothing is quoted yet.

    core_mask: the cores to run on, bit 0 the first. Raises DeviceError for a delegate that the tool does not have.
    """
    if delegate not in DELEGATES:
        raise DeviceError(f"delegate = {delegate!r} does not exist; benchmark_model has {', '.join(DELEGATES)}")
    pinned = [] if core_mask is None else ["taskset", f"{core_mask:x}"]
    return [
        *pinned,
        binary,
        f"--graph={graph}",
        f"--num_threads={threads}",
        f"--use_{DELEGATES[delegate]}=true",
        f"--warmup_runs={_WARM_UP_RUNS}",
        "--warmup_min_secs=0",
        f"--num_runs={min_runs}",
        f"--min_secs={min_seconds:g}",
        # The default of 150 s may cut a round short: a round ends when it has what was asked for.
        f"--max_secs={max(150.0, 100 * min_seconds):g}",
        "--report_peak_memory_footprint=true",
        "--memory_footprint_check_interval_ms=5",
        "--verbose=true",  # newer builds say only then what a delegate replaced
    ]


def parse(output: str, *, delegate: str = "cpu", runtime: str = RUNTIME) -> Output:
    """What the tool found, from all that it wrote to stdout and stderr, the last line's end included.

    delegate: what was asked for; runtime: what to call the tool, with its version if that is known. Raises DeviceError
    when the output is cut short or tells of a failure, and when a GPU or NNAPI did not take a single node: the tool
    then runs the file on the CPU and says nothing more.
    """
    text = output.replace("\r\n", "\n")
    text = text[: text.rfind("\n") + 1]  # half a number is a number
    end = _last(_END, text)
    counts = list(_COUNT.finditer(text, 0, end.start() if end else len(text)))
    if end is None or len(counts) < 2:
        raise DeviceError(_failure(text))
    timed = {name: float(value) for name, value in _FIELD.findall(counts[-1][0])}
    average = float(end["avg"] or end["old_avg"])
    if not _statistics(timed) or not math.isclose(timed.get("avg", timed["curr"]), average, rel_tol=_ROUNDED):
        raise DeviceError("benchmark_model printed statistics that contradict each other, so they are not used")
    memory = _last(_MEMORY, text) or _last(_MEMORY_DELTA, text)
    session = _last(_SESSION, text)
    init_ms = float(session[1]) if session else float(end["init"] or end["old_init"]) / 1e3
    return Output(
        Loaded(init_ms=init_ms, runtime=runtime, delegation=delegation(text, delegate)),
        _round(timed, float(memory[1]) if memory else None),
    )


def delegation(text: str, delegate: str) -> Delegation | None:
    """What ran the graph and how much of it the delegate took, as far as the output tells.

    Raises DeviceError where a GPU or NNAPI was asked for and nothing says that it took a node.
    """
    taken, nodes = 0, 0
    for count, of, name in _REPLACED.findall(text):
        if DELEGATES[delegate] in name.lower():
            taken += int(count)
            nodes += int(of or 0)
    applied = {name.lower(): completely or "not" for name, completely, _ in _APPLIED.findall(text)}
    word = applied.get(DELEGATES[delegate])
    title = _TITLES[delegate]
    if word == "completely":
        return Delegation(title, 1.0, nodes or None)
    if taken:
        return Delegation(title, taken / nodes if nodes else None, nodes or None)
    if word == "partially":
        return Delegation(title)
    if delegate != "cpu":
        raise DeviceError(
            f"the {title} took no part of this file, so it ran on the CPU: this phone's {title} cannot run its "
            "operators, or the build of benchmark_model lacks that delegate; measure with --delegate cpu"
        )
    return Delegation("built-in kernels", 1.0) if word == "not" else None


def _statistics(us: dict[str, float]) -> bool:
    """Whether the statistics can be those of any runs."""
    if us["count"] < 1 or "curr" not in us:
        return False
    if "min" not in us:
        return us["curr"] > 0
    # The average is printed with six digits and can so exceed the largest by a hair.
    between = us.get("avg", us["min"])
    return 0 < us["min"] <= us["max"] and us["min"] * (1 - 1e-5) <= between <= us["max"] * (1 + 1e-5)


def _round(us: dict[str, float], peak_memory_mb: float | None) -> Round:
    least, most = us.get("min", us["curr"]), us.get("max", us["curr"])
    middle = us.get("median", us.get("avg", us["curr"]))
    return Round(least / 1e3, middle / 1e3, us.get("p95", most) / 1e3, int(us["count"]), peak_memory_mb)


def _failure(text: str) -> str:
    trouble = _TROUBLE.findall(text)
    if trouble:
        return f"benchmark_model cannot run it: {_short(trouble[0])}"
    lines = text.split("\n")[:-1]
    last = f"; its last line was {_short(lines[-1])!r}" if lines else ""
    return f"benchmark_model ended before it had timed the file{last}"


def _short(line: str) -> str:
    line = line.strip()
    return line if len(line) <= 160 else f"{line[:157]}..."


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(reversed(list(pattern.finditer(text))), None)
