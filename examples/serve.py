"""Serves an artifact over HTTP: FastAPI, as many requests at once as there are cores, any number of images in each.

    pip install fastapi uvicorn
    tvmc compile model.onnx --batches 1,8 -o model.tar
    python examples/serve.py model.tar --port 8000

    curl --data-binary @images.npy http://127.0.0.1:8000/predict > outputs.npy

Where this runs, only tvm and numpy are needed beside FastAPI: no torch. An instance runs on one thread, and several run at
once over one copy of the weights, which gives the most images a second; for the least time of one image leave `threads` out.
"""

import argparse
import io
from typing import TYPE_CHECKING

import numpy as np

import reparam_compiler

if TYPE_CHECKING:
    from fastapi import FastAPI


def served(path: str, threads: int | None = 1) -> reparam_compiler.Executable:
    """The artifact, each run of it on so many threads."""
    return reparam_compiler.load(path).clone(threads=threads)


def answer(executable: reparam_compiler.Executable, body: bytes) -> bytes:
    """The first output for the images of a request, both as numpy's .npy; raises ValueError for what does not fit."""
    (given,) = executable.inputs
    images = np.load(io.BytesIO(body), allow_pickle=False)
    if images.dtype != given.dtype or images.shape[1:] != tuple(given.shape[1:]):
        raise ValueError(
            f"found {images.dtype} {images.shape}; expected {given.dtype} (N, {', '.join(map(str, given.shape[1:]))})"
        )
    written = io.BytesIO()
    np.save(written, executable.run(images)[0])
    return written.getvalue()


def application(executable: reparam_compiler.Executable) -> "FastAPI":
    """POST /predict with images, GET /health."""
    from fastapi import FastAPI, HTTPException, Request, Response
    from fastapi.concurrency import run_in_threadpool

    app = FastAPI()

    async def predict(request: Request) -> Response:
        try:
            outputs = await run_in_threadpool(answer, executable, await request.body())
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        return Response(outputs, media_type="application/octet-stream")

    app.add_api_route("/predict", predict, methods=["POST"], response_class=Response)
    app.add_api_route("/health", lambda: {"target": executable.target, "batches": executable.batches})
    return app


def main() -> None:
    """Load, listen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact")
    parser.add_argument("--threads", type=int, default=1, help="of one run")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    import uvicorn

    uvicorn.run(application(served(given.artifact, given.threads)), host="127.0.0.1", port=given.port)


if __name__ == "__main__":
    main()
