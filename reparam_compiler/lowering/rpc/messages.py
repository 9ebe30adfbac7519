"""What goes over the wire between a client and a server of ours: a question or an answer, with arrays.

    message = npz { about: JSON as bytes, 0, 1, …: arrays }

Nothing of it is code to whoever reads it, and numpy reads no pickles here.
"""

import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from reparam_compiler.lowering.runtime.description import Array

ABOUT = "about"


def written(about: Mapping[str, Any], arrays: "Sequence[Array]" = ()) -> bytes:
    """A message.

    >>> read(written({"do": "run"}, [np.arange(3)]))
    ({'do': 'run'}, [array([0, 1, 2])])
    """
    file = io.BytesIO()
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    held: dict[str, Any] = {ABOUT: text, **{str(place): np.asarray(array) for place, array in enumerate(arrays)}}
    np.savez(file, **held)
    return file.getvalue()


def read(content: bytes) -> "tuple[dict[str, Any], list[Array]]":
    """What `written` was given. Raises: ValueError, KeyError or OSError where it is no such message."""
    with np.load(io.BytesIO(content), allow_pickle=False) as held:
        about = json.loads(bytes(held[ABOUT]))
        return about, [held[str(place)] for place in range(len(held.files) - 1)]
