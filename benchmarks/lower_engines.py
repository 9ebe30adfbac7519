"""The engines that `lower.py` times, each in a process of its own that waits for its turns.

    python -m benchmarks.lower_engines ENGINE FOLDER THREADS         started by `Worker`, spoken to by lines of JSON

A worker makes its engine from the files in the folder (`lower_subjects.py`), runs it once, writes the output for the error to
be measured, and then runs it as often as it is told to, telling the seconds of each run: from a numpy array to a numpy array.
Between its turns it is stopped (SIGSTOP), for the pools of OpenMP, ONNX Runtime and TVM spin for a while after each run and
would take a core from whoever is next; a turn begins with a run that is not counted. All are bound to the same cores: on a
virtual machine one core may be half as fast as its neighbour for seconds.

Settings: float32 throughout, Winograd where an engine has it, its own choice of the rest; so many threads as told.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[], np.ndarray]
Make = Callable[[Path, int], Run]

TRAINING, OURS, ONNX_RUNTIME, MNN, NCNN = "training form, ONNX Runtime", "ours", "ONNX Runtime", "MNN", "ncnn"
BY_RULE = "ours by rule"
"""Without what searches found (`CompileOptions.shipped_records`)."""
START_LIMIT, TURN_LIMIT = 240.0, 120.0
"""Seconds to make an engine in, and for one turn."""


def _image(folder: Path) -> np.ndarray:
    return np.load(folder / "x.npy")


def _onnx_runtime(file: str) -> Make:
    def make(folder: Path, threads: int) -> Run:
        from benchmarks.sessions import session

        loaded = session(str(folder / file), threads)
        feed = {loaded.get_inputs()[0].name: _image(folder)}
        return lambda: loaded.run(None, feed)[0]

    return make


def _openvino(folder: Path, threads: int) -> Run:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = openvino.Core().compile_model(str(folder / "fused.onnx"), "CPU", settings).create_infer_request()
    x = _image(folder)

    def run() -> np.ndarray:
        request.infer([x], share_inputs=True)
        return np.array(request.get_output_tensor().data)

    return run


def _torch(kind: str) -> Make:
    def make(folder: Path, threads: int) -> Run:
        import torch

        torch.set_num_threads(threads)
        model = torch.load(folder / "fused.pt", weights_only=False).eval()
        x = torch.from_numpy(_image(folder))
        if kind == "channels last":
            model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
        if kind == "inductor":
            torch._inductor.config.freezing = True  # weights packed once, as inference allows
            model = torch.compile(model)

        def run() -> np.ndarray:
            with torch.no_grad():
                return model(x).numpy()

        return run

    return make


def _mnn(folder: Path, threads: int) -> Run:
    import MNN

    runtime = MNN.nn.create_runtime_manager(({"backend": "CPU", "precision": "high", "numThread": threads},))
    module = MNN.nn.load_module_from_file(str(folder / "fused.mnn"), [], [], runtime_manager=runtime)
    x = _image(folder)

    def run() -> np.ndarray:
        given = MNN.expr.const(x, list(x.shape), MNN.expr.NCHW, MNN.expr.float)
        (found,) = module.onForward([given])
        return np.array(MNN.expr.convert(found, MNN.expr.NCHW).read())

    return run


def _ncnn(folder: Path, threads: int) -> Run:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_bf16_storage = False
    if net.load_param(str(folder / "fused.ncnn.param")) or net.load_model(str(folder / "fused.ncnn.bin")):
        raise RuntimeError("ncnn cannot load what pnnx wrote")
    x = _image(folder)[0]

    def run() -> np.ndarray:
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(x))
        return np.array(extractor.extract("out0")[1])[None]

    return run


def _ours(file: str) -> Make:
    def make(folder: Path, threads: int) -> Run:
        import benchmarks.without_torch  # noqa: F401
        from reparam_compiler.lowering import load

        executable, x = load(folder / file), _image(folder)
        return lambda: executable.run(x)[0]

    return make


ENGINES: Mapping[str, Make] = {
    TRAINING: _onnx_runtime("training.onnx"),
    ONNX_RUNTIME: _onnx_runtime("fused.onnx"),
    "OpenVINO": _openvino,
    "torch eager": _torch("eager"),
    "torch channels last": _torch("channels last"),
    "torch inductor": _torch("inductor"),
    MNN: _mnn,
    NCNN: _ncnn,
    OURS: _ours("ours.tar"),
    BY_RULE: _ours("rule.tar"),
}
PEERS = tuple(name for name in ENGINES if name not in (TRAINING, OURS, BY_RULE))
"""Who runs the same fused net."""
COMPARED = (TRAINING, *PEERS, OURS)


class Worker:
    """An engine in a process of its own, or the reason why there is none.

    Args:
        engine: a key of `ENGINES`.
        folder: a prepared subject.
        threads: that the engine may use.
    """

    def __init__(self, engine: str, folder: Path, threads: int) -> None:
        self.engine, self.folder, self.reason = engine, folder, ""
        names = ("OMP_NUM_THREADS", "TVM_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(names, str(threads))}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.lower_engines", engine, str(folder.resolve()), str(threads)],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )

    def ready(self) -> bool:
        """Waits until the engine is made and stops it; False where there is none."""
        self._answer(START_LIMIT)
        if not self.reason:
            self.process.send_signal(signal.SIGSTOP)
        return not self.reason

    def turn(self, runs: int) -> list[float]:
        """Seconds of so many runs in a row; none where the engine failed, now or before."""
        if self.reason:
            return []
        self.process.send_signal(signal.SIGCONT)
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(f"{runs}\n".encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            self._fail("its process died")
            return []
        seconds = self._answer(TURN_LIMIT).get("seconds", [])
        if not self.reason:
            self.process.send_signal(signal.SIGSTOP)
        return list(seconds)

    def output(self) -> np.ndarray:
        """What the engine computed."""
        return np.load(_output(self.folder, self.engine))

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def _answer(self, limit: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(limit):
                return self._fail(f"took more than {limit:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            return self._fail("its process died")
        found: dict[str, Any] = json.loads(line)
        return self._fail(found["none"]) if "none" in found else found

    def _fail(self, reason: str) -> dict[str, Any]:
        self.reason = reason
        self.process.kill()
        return {}


def _output(folder: Path, engine: str) -> Path:
    return folder / f"output of {engine}.npy"


def _serve(engine: str, folder: Path, threads: int) -> None:
    """The worker's side: an answer for each line, on the stdout that the process began with; engines print on theirs."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def answer(record: Mapping[str, Any]) -> None:
        answers.write(json.dumps(record) + "\n")

    try:
        run = ENGINES[engine](folder, threads)
        np.save(_output(folder, engine), run())
        answer({"seconds": []})
        for line in sys.stdin:
            run()
            taken = []
            for _ in range(int(line)):
                start = time.perf_counter()
                run()
                taken.append(time.perf_counter() - start)
            answer({"seconds": taken})
    except Exception as error:  # noqa: BLE001 - the table says why there is nothing; the other engines go on
        answer({"none": f"{type(error).__name__}: {error}".split("\n")[0][:200]})


if __name__ == "__main__":
    _serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
