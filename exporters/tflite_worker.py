"""The child process of the TFLite export.

python -m exporters.tflite_worker MODEL.pt2 OUT.tflite 1xHxWxC VERDICT.json
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path


def _stop_with_parent() -> None:
    """The parent holds the other end of standard input and writes nothing: the end of it is the parent's end."""
    while os.read(0, 1024):
        pass
    os._exit(3)


def convert(source: Path, made: Path, shape: tuple[int, ...]) -> None:
    """Convert the exported program to a TFLite file that takes float32 images of `shape` (1, H, W, C)."""
    import litert_torch
    import torch

    module = torch.export.load(source).module()
    channel_last = litert_torch.to_channel_last_io(module, args=[0])
    litert_torch.convert(channel_last, (torch.zeros(shape),)).export(str(made))


def main(arguments: list[str]) -> int:
    source, made, shape, verdict = arguments
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    try:
        convert(Path(source), Path(made), tuple(int(side) for side in shape.split("x")))
    except Exception as error:
        import traceback

        traceback.print_exc()
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0].rstrip(".") if lines else type(error).__name__
        Path(verdict).write_text(json.dumps({"reason": reason}), encoding="utf-8")
        return 1
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # the native libraries' exit handlers have nothing to add
