"""Convs of odd sizes, for properties of what is chosen for them."""

from hypothesis import strategies as st

from reparam_compiler.lowering.conv.algorithms import ConvShape


@st.composite
def conv_shapes(draw: st.DrawFn) -> ConvShape:
    """A small float32 conv or dense layer with at least one output pixel."""
    taps = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    stride = draw(st.sampled_from([(1, 1), (2, 2), (1, 2)]))
    padding = tuple(draw(st.integers(0, size - 1)) for size in (*taps, *taps))
    groups = draw(st.sampled_from([1, 2]))
    height, width = (size + draw(st.integers(0, 20)) for size in taps)
    channels = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    return ConvShape(1, height, width, groups * channels[0], groups * channels[1], taps, stride, (1, 1), padding, groups)
