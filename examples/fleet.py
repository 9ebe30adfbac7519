"""A fleet on one machine: a tracker, some servers, and a client that runs an artifact on whichever is free.

    python examples/fleet.py model.tar [--servers 2]

On real devices `tvmc tracker` and `tvmc server` run there and stay (docs/fleet.md); here they are children of this process
and listen on the loopback only. A server runs whatever code it is sent: never let one listen to strangers.
"""

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import reparam_compiler
from reparam_compiler import Rpc

KEY = "boards"


@contextlib.contextmanager
def program(*words: str) -> Iterator[str]:
    """`tvmc tracker` or `tvmc server`, for as long as the block runs; where it listens."""
    command = [sys.executable, "-m", "reparam_compiler.tvmc", *words, "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            said = json.loads(process.stdout.readline())
            yield said.get("server", said["tracker"])
        finally:
            process.terminate()


def on_a_device(artifact: str, tracker: str, seed: int) -> tuple[float, float]:
    """What a device gives for one random image, in sum, and the milliseconds that it took there."""
    executable = reparam_compiler.load(artifact, rpc=Rpc(tracker, KEY, wait=600.0))  # holds the device as long as it is there
    (given,) = executable.inputs
    image = np.random.default_rng(seed).standard_normal((1, *given.shape[1:])).astype(given.dtype)
    return float(executable.run(image)[0].sum()), 1e3 * executable.time(image, repeat=3)


def main() -> None:
    """Start the fleet, run on all of it at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact")
    parser.add_argument("--servers", type=int, default=2)
    given = parser.parse_args()
    with contextlib.ExitStack() as programs:
        tracker = programs.enter_context(program("tracker"))
        for _ in range(given.servers):
            programs.enter_context(program("server", "--tracker", tracker, "--key", KEY))
        with ThreadPoolExecutor(given.servers) as pool:
            runs = pool.map(lambda seed: on_a_device(given.artifact, tracker, seed), range(given.servers))
            for seed, (total, milliseconds) in enumerate(runs):
                print(f"image {seed}: outputs add up to {total:.4f}, {milliseconds:.2f} ms on the device")


if __name__ == "__main__":
    main()
