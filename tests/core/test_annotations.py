"""The shapes that annotations of arrays state are checked while the tests run."""

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from reparam_compiler.core.kernel import ConvKernel

pytest.importorskip("beartype")


def test_an_array_of_another_shape_than_its_annotation_is_seen() -> None:
    with pytest.raises(TypeCheckError, match="bias"):
        ConvKernel(np.zeros((2, 2, 3)), np.zeros(3), (1,), (1,), ((0, 0),))
