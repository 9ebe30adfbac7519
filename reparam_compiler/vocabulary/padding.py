"""What padding holds: one row a mode, with what torch's `F.pad` and ONNX's Pad call it.

TORCH_PAD["zeros"]      "constant"
ONNX_PAD["circular"]    "wrap"
FROM_ONNX_PAD["edge"]   "replicate"
"""

from collections.abc import Mapping
from types import MappingProxyType

from reparam_compiler.core.kernel import PaddingMode

_ROWS: tuple[tuple[PaddingMode, str, str], ...] = (
    ("zeros", "constant", "constant"),
    ("reflect", "reflect", "reflect"),
    ("replicate", "replicate", "edge"),
    ("circular", "circular", "wrap"),
)
TORCH_PAD: Mapping[PaddingMode, str] = MappingProxyType({mode: torch for mode, torch, _ in _ROWS})
"""What `F.pad` calls a mode."""
ONNX_PAD: Mapping[PaddingMode, str] = MappingProxyType({mode: onnx for mode, _, onnx in _ROWS})
"""What ONNX's Pad calls it."""
FROM_TORCH_PAD: Mapping[str, PaddingMode] = MappingProxyType({torch: mode for mode, torch, _ in _ROWS})
"""The mode of a word of `F.pad`'s."""
FROM_ONNX_PAD: Mapping[str, PaddingMode] = MappingProxyType({onnx: mode for mode, _, onnx in _ROWS})
"""The mode of a word of ONNX's Pad."""
