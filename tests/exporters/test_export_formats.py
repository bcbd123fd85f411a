"""What is particular to one format: ONNX options and throw-away files, the TFLite converter's process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from small_nets import SPEC, Shelf, make_net
from torch import nn

import exporters.child
import exporters.onnx
from exporters import ExportError, InputSpec, export
from exporters.child import Child, ChildError
from exporters.verify import open_runtime, parity


@pytest.mark.parametrize("net", ["mobile", "cifar", "oddpool"])
def test_throw_away_onnx_computes_the_same(
    net: str, tmp_path: Path, images: np.ndarray, capfd: pytest.CaptureFixture[str]
) -> None:
    artifact = export(make_net(net), SPEC, tmp_path / "x.onnx", format="onnx", simplify=False)
    assert parity(artifact.path, make_net(net), images).max_abs < 1e-5
    assert capfd.readouterr() == ("", "")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.onnx"]
    known = {info.name for info in onnx.shape_inference.infer_shapes(onnx.load(artifact.path)).graph.value_info}
    graph = onnx.load(artifact.path).graph
    assert all(name in known for node in graph.node[:-1] for name in node.output), "an operator's size is unknown"


def test_throw_away_onnx_has_the_operators_of_the_final_one(shelf: Shelf, tmp_path: Path) -> None:
    """It is timed in its place: a padding that is not folded into its convolution takes a third more time."""
    draft = export(make_net("cifar"), SPEC, tmp_path / "x.onnx", format="onnx", simplify=False)
    heavy = {"Conv", "Gemm", "Pad", "Slice", "Relu", "Add", "BatchNormalization"}

    def counted(path: Path) -> Counter[str]:
        return Counter(node.op_type for node in onnx.load(path).graph.node if node.op_type in heavy)

    final = counted(shelf.get("cifar", "onnx").path)
    assert counted(draft.path) == final and final["Conv"] == 2 and final["Pad"] == 1


def test_oddpool_artifact(shelf: Shelf, images: np.ndarray) -> None:
    assert parity(shelf.get("oddpool", "onnx").path, make_net("oddpool"), images).passes()


def test_onnx_is_minimal_and_named(shelf: Shelf) -> None:
    model = onnx.load(shelf.get("mobile", "onnx").path)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.name for entry in model.graph.input] == ["input"]
    assert [entry.name for entry in model.graph.output] == ["logits"]
    assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 16, 16]
    assert [entry.version for entry in model.opset_import] == [18]
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Conv") == 4 and "BatchNormalization" not in kinds and "Identity" not in kinds
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


@pytest.mark.parametrize("simplify", [True, False])
def test_onnx_open_batch(simplify: bool, tmp_path: Path, images: np.ndarray) -> None:
    path = tmp_path / "x.onnx"
    export(make_net("cifar"), SPEC, path, format="onnx", dynamic_batch=True, simplify=simplify)
    runtime = open_runtime(path)
    assert runtime.batch is None
    assert parity(path, make_net("cifar"), images).passes()
    assert np.allclose(runtime(images)[3:4], runtime(images[3:4]), atol=1e-6)


def test_gelu_is_one_operator(tmp_path: Path) -> None:
    """Operator set 18 spells it out, which takes longer."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(784, 5))
    for simplify in (True, False):
        path = tmp_path / f"{simplify}.onnx"
        export(net, SPEC, path, format="onnx", simplify=simplify)
        model = onnx.load(path)
        assert "Gelu" in [node.op_type for node in model.graph.node]
        assert [entry.version for entry in model.opset_import] == [20]


def test_onnx_opset(tmp_path: Path) -> None:
    export(make_net("mobile"), SPEC, tmp_path / "x.onnx", format="onnx", opset=21)
    assert [entry.version for entry in onnx.load(tmp_path / "x.onnx").opset_import] == [21]


def test_onnx_opset_that_cannot_be_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExportError, match="operator set 13 cannot be written for this model, only 18"):
        export(make_net("cifar"), SPEC, tmp_path / "x.onnx", format="onnx", opset=13)
    assert not (tmp_path / "x.onnx").exists()
    assert capfd.readouterr() == ("", "")


def test_onnx_draft_whose_converter_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise SystemError("inner\nmore lines")

    monkeypatch.setattr(exporters.onnx, "_torchscript", broken)
    with pytest.raises(ExportError, match=r"the onnx export failed: inner \(the whole story is in"):
        export(make_net("mobile"), SPEC, tmp_path / "x.onnx", format="onnx", simplify=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.onnx.log"]


@pytest.mark.fresh_child
def test_converter_that_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporters.child.Child, "call", lambda self, function, **arguments: None)
    with pytest.raises(ExportError, match="ended well but wrote nothing"):
        export(make_net("mobile"), SPEC, tmp_path / "x.tflite", format="tflite")
    assert [entry.name for entry in tmp_path.iterdir()] == []


def test_child_does_jobs_until_it_dies(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Child() as child:
        assert child.call("json:loads", log=log, timeout_s=60, s="[1, 2]") == [1, 2]
        with pytest.raises(ChildError, match="Expecting value"):
            child.call("json:loads", log=log, timeout_s=60, s="no json")
        assert "Traceback" in log.read_text()
        with pytest.raises(ChildError, match="ended with status 9"):
            child.call("os:_exit", log=log, timeout_s=60, status=9)
        assert child.call("json:loads", log=log, timeout_s=60, s="3") == 3


def test_child_that_dies_between_two_jobs_is_replaced(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Child() as child:
        number = child.call("os:getpid", log=log, timeout_s=60)
        os.kill(number, signal.SIGKILL)
        os.waitid(os.P_PID, number, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has asked yet
        assert child.call("os:getpid", log=log, timeout_s=60) != number


CONVERTING = """
import os, signal, sys
from pathlib import Path
from exporters.child import Child
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started pytest in the background
signal.signal(signal.SIGHUP, signal.SIG_DFL)
child, log = Child(), Path(sys.argv[1])
"""
INTERRUPTED = """
number = child.call("os:getpid", log=log)
try:
    os.killpg(0, signal.SIGINT)
    signal.pause()
except KeyboardInterrupt:
    print(child.call("os:getpid", log=log) == number)
"""


def test_ctrl_c_between_two_jobs_leaves_the_child(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CONVERTING + INTERRUPTED, str(tmp_path / "log")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, start_new_session=True)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("busy", [True, False])
def test_no_child_outlives_its_process(number: signal.Signals, busy: bool, tmp_path: Path) -> None:
    wait = "child.call('signal:pause', log=log)" if busy else "signal.pause()"
    script = f"{CONVERTING}print(child.call('os:getpid', log=log), flush=True); {wait}"
    command = [sys.executable, "-c", script, str(tmp_path / "log")]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, stdout=pipe, stderr=null, text=True, start_new_session=True) as running:
        assert running.stdout is not None
        child = psutil.Process(int(running.stdout.readline()))
        os.killpg(running.pid, number)
    _, alive = psutil.wait_procs([child], timeout=60)
    assert alive == []


@pytest.mark.parametrize("option", [{"dynamic_batch": True}, {"opset": 18}])
def test_tflite_refuses_what_it_cannot_do(option: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="tflite"):
        export(make_net("mobile"), SPEC, tmp_path / "x.tflite", format="tflite", **option)


def test_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="unknown format 'coreml'; choose one of: onnx, tflite, executorch"):
        export(make_net("mobile"), SPEC, tmp_path / "x", format="coreml")


@pytest.mark.parametrize(
    "fields",
    [
        (0, 8, 8, (), ()),
        (3, 8, 8, (0.5,), (0.5,)),
        (1, 8, 8, (0.5,), (0.0,)),
        (1, 8, 8, (0.5,), (0.5,), "CHWN"),
    ],
)
def test_input_that_cannot_be(fields: tuple[object, ...]) -> None:
    with pytest.raises(ExportError):
        InputSpec(*fields)


def test_importing_the_package_is_light() -> None:
    code = "import exporters, sys; exporters.formats(); print({'torch', 'numpy', 'onnx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_one_channel(tmp_path: Path) -> None:
    grey = InputSpec(1, 6, 4, (0.5,), (0.5,))
    net = nn.Sequential(nn.Flatten(), nn.Linear(24, 2))
    artifact = export(net, grey, tmp_path / "x.onnx", format="onnx", simplify=False)
    assert open_runtime(artifact.path).image == (1, 6, 4)


def test_model_that_cannot_be_copied(tmp_path: Path) -> None:
    net = make_net("mobile")
    net.cached = net.classify.weight * 2  # a tensor that belongs to a graph
    with pytest.raises(ExportError, match="cannot be copied"):
        export(net, SPEC, tmp_path / "x.onnx", format="onnx")
