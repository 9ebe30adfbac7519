"""The dtypes of a graph's values: one row a dtype, with what numpy, torch and ONNX call it.

DTYPES["bf16"].name     "bfloat16"
DTYPES["bf16"].eps      2 ** -7, the distance from 1 to the next number
FLOATING                the rows of floating dtypes, the finest first
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np


@dataclass(frozen=True, slots=True)
class DType:
    """One dtype.

    word: what the graph calls it ("f32"). name: what numpy and torch call it ("float32").
    onnx: its number in `onnx.TensorProto.DataType`.
    bits: of one element as it is stored.
    mantissa: the bits of a number's fraction that are stored; None for integers and bool.
    """

    word: str
    name: str
    onnx: int
    bits: int
    mantissa: int | None = None

    @property
    def eps(self) -> float:
        """The distance from 1 to the next number; raises ValueError for a dtype of whole numbers."""
        if self.mantissa is None:
            raise ValueError(f"{self.word} has no eps: it is not a floating dtype")
        return float(2.0**-self.mantissa)

    @property
    def span(self) -> tuple[float, float]:
        """The smallest number above zero that a floating dtype holds, and the largest."""
        zero, infinity = np.asarray(0, self.numpy), np.asarray(np.inf, self.numpy)
        return float(np.nextafter(zero, infinity)), float(np.nextafter(infinity, zero))

    @property
    def bytes(self) -> int:
        """Of one element as it is stored."""
        return self.bits // 8

    @property
    def numpy(self) -> np.dtype[Any]:
        """The dtype of its arrays; bfloat16 is that of ml_dtypes."""
        return np.dtype(ml_dtypes.bfloat16 if self.word == "bf16" else self.name)


_ROWS = (
    DType("f64", "float64", 11, 64, 52),
    DType("f32", "float32", 1, 32, 23),
    DType("f16", "float16", 10, 16, 10),
    DType("bf16", "bfloat16", 16, 16, 7),
    DType("i64", "int64", 7, 64),
    DType("i32", "int32", 6, 32),
    DType("i16", "int16", 5, 16),
    DType("i8", "int8", 3, 8),
    DType("u64", "uint64", 13, 64),
    DType("u32", "uint32", 12, 32),
    DType("u16", "uint16", 4, 16),
    DType("u8", "uint8", 2, 8),
    DType("bool", "bool", 9, 8),
)
DTYPES: Mapping[str, DType] = MappingProxyType({row.word: row for row in _ROWS})
"""For each word of the graph its row. A value of another dtype is called by the framework's own name, and has none."""
FLOATING: Mapping[str, DType] = MappingProxyType({row.word: row for row in _ROWS if row.mantissa is not None})
"""The rows of floating dtypes, the finest first."""
