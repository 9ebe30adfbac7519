"""Bytes of ONNX models, changed by what reaches new lines of this package: libFuzzer by way of atheris.

    python -m benchmarks.fuzz_coverage --seconds 60 --corpus FOLDER --faults FOLDER      needs atheris: pip install atheris

Our modules alone are instrumented. Each input is loaded, inspected and fused; what is no typed error ends the run, and its
bytes stay in the folder of faults.
"""

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECONDS = 60
_DONE = re.compile(r"#(?P<inputs>\d+)\s.*?cov: (?P<lines>\d+) ft: \d+ corp: (?P<kept>\d+)")


def covered(seconds: int) -> str:
    """What a run of so many seconds found, in a sentence. Raises SystemExit where atheris is not installed.

    An input that ended it stays in a temporary folder, which is printed.
    """
    try:
        import atheris  # noqa: F401
    except ImportError:
        raise SystemExit("--coverage needs atheris: pip install atheris") from None
    faults = Path(tempfile.mkdtemp(prefix="fuzz-faults-"))
    with tempfile.TemporaryDirectory() as corpus:
        command = [sys.executable, "-m", "benchmarks.fuzz_coverage", "--seconds", str(seconds), "--corpus", corpus]
        command += ["--faults", str(faults)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=dict(os.environ))
    if any(faults.iterdir()):
        print(f"what ended the run of atheris: {faults}", flush=True)
    else:
        faults.rmdir()
    counts = list(_DONE.finditer(done.stderr))
    if not counts:
        return f"atheris did not start: {done.stderr[-300:]}"
    last, first = counts[-1], counts[0]
    ended = "no fault" if done.returncode == 0 else f"a fault: {_fault(done.stderr)}"
    reached = f"{first['lines']} branches of the package at first, {last['lines']} at the end"
    return f"{last['inputs']} inputs in {seconds} s: {reached}, {last['kept']} inputs kept for what they reach; {ended}."


def _fault(said: str) -> str:
    return next((line for line in reversed(said.splitlines()) if "Error" in line), said[-200:])


def main(words: Sequence[str] | None = None) -> None:
    """Runs until the time is up or something is found; libFuzzer reports on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=SECONDS)
    parser.add_argument("--corpus", type=Path, required=True, help="a folder: valid models go in, what reaches more is added")
    parser.add_argument("--faults", type=Path, required=True, help="a folder: an input that ends the run is left there")
    options = parser.parse_args(words)
    import atheris

    with atheris.instrument_imports(include=["reparam_compiler"], enable_loader_override=False):
        import reparam_compiler
        from reparam_compiler.errors import ReparamError
        from reparam_compiler.frontends.onnx import io as onnx_io
        from tests.support.fuzz_seeds import SEEDS
    for name, make in SEEDS.items():
        (options.corpus / name.replace(" ", "-")).write_bytes(make().SerializeToString())

    def one(content: bytes) -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.suppress(ReparamError),
        ):  # atheris ends the process: none is left
            path = Path(folder) / "model.onnx"
            path.write_bytes(content)
            model = onnx_io.load(path)
            reparam_compiler.inspect(model)
            reparam_compiler.fuse(model)

    warnings.simplefilter("ignore")
    flags = [f"-max_total_time={options.seconds}", "-timeout=60", "-rss_limit_mb=8192", "-max_len=8192", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *flags, f"-artifact_prefix={options.faults}/", str(options.corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
