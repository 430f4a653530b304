"""OpenVINO's Python binding can deadlock when threads are the first to use it, all at once: one holds a C++ static
initialisation guard and waits for the interpreter lock, another holds the lock and waits for the guard. The backend
therefore infers once on the thread that loads. Only fresh processes can show that this holds.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests import tiny_models

PROCESSES = 30
AT_A_TIME = 3
SECONDS = 60  # a process takes about one; a deadlock lasts for ever
SCRIPT = """
import sys, threading
from pathlib import Path
import numpy as np
from visionpool_server.backends import ImageInput, LoadOptions, Source, get_backend
from visionpool_server.imaging.recipe import Arithmetic

image = ImageInput("images", "NCHW", Arithmetic(), (64, 64))
engine = get_backend("openvino").load(Source(Path(sys.argv[1])), LoadOptions(image=image, contexts=4))
together = threading.Barrier(4)
answers = []

def work():
    context = engine.clone()
    together.wait()
    for _ in range(3):
        outputs = context.infer({"images": np.zeros((1, 64, 64, 3), np.uint8)})
    answers.append(float(outputs["output0"].sum()))

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(answers) == 4 and len(set(answers)) == 1, answers
print("done")
"""


def test_thirty_fresh_processes_use_the_binding_from_several_threads_at_once(tmp_path: Path) -> None:
    model = tiny_models.yolov8(tmp_path / "m.onnx")
    script = tmp_path / "use.py"
    script.write_text(textwrap.dedent(SCRIPT), encoding="utf-8")

    def use(_: int) -> str:
        command = [sys.executable, str(script), str(model)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return f"hung for {SECONDS} s"
        return done.stdout.strip() or done.stderr

    with ThreadPoolExecutor(AT_A_TIME) as threads:
        assert list(threads.map(use, range(PROCESSES))) == ["done"] * PROCESSES
