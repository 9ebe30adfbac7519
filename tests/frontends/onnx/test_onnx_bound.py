"""Open sizes at those of example inputs: what follows from them is followed, and what is written takes any other."""

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper, parser

import reparam_compiler
from reparam_compiler.frontends.onnx.frontend import OnnxFrontend
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, TensorType
from tests.support.onnx_models import normal, run

WEIGHTS = {
    "w1": normal(16, 3, 3, 3),
    "w2": normal(24, 16, 3, 3, seed=1) / 4,
    "w3": normal(4, 24, 1, 1, seed=2) / 4,
    "p": normal(24, 24, seed=3) / 4,
    "qkv": normal(24, 72, seed=4) / 4,
    "f": normal(24, 5, seed=5),
    "g": 1 + normal(24, seed=6) / 9,
    "zero": np.array(0),
    "one": np.array(1),
    "two": np.array(2),
    "three": np.array(3),
    "axis": np.array([0]),
    "last": np.array([2]),
    "left": np.array([-1]),
    "width": np.array([24]),
    "threes": np.array([3]),
    "heads": np.array([4]),
    "six": np.array([6]),
    "next": np.array([1]),
    "eps": np.array(1e-5, np.float32),
}
FEATURES = """
    a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1)
    ra = Relu(a)
    b = Conv<pads=[1,1,1,1]>(ra, w2)
    rb = Relu(b)
"""
ROWS = """
    s = Shape(rb)
    batch = Slice(s, axis, next)
    flat = Concat<axis=0>(batch, width, left)
    t = Reshape(rb, flat)
    y0 = Transpose<perm=[0,2,1]>(t)
"""
NETS = {
    "anchors": FEATURES
    + """
    c = Conv(rb, w3)
    s = Shape(c)
    high = Gather(s, two)
    wide = Gather(s, three)
    rows = Range(zero, high, one)
    columns = Range(zero, wide, one)
    rows1 = Unsqueeze(rows, next)
    grid = Add(rows1, columns)
    floats = Cast<to=1>(grid)
    y = Add(c, floats)
""",
    "map to sequence": FEATURES
    + """
    steps = Transpose<perm=[3,0,1,2]>(rb)
    s = Shape(steps)
    t = Gather<axis=0>(s, zero)
    n = Gather<axis=0>(s, one)
    c = Gather<axis=0>(s, two)
    h = Gather<axis=0>(s, three)
    ch = Mul(c, h)
    t1 = Unsqueeze(t, axis)
    n1 = Unsqueeze(n, axis)
    ch1 = Unsqueeze(ch, axis)
    shape = Concat<axis=0>(t1, n1, ch1)
    q = Reshape(steps, shape)
    m = ReduceMean<axes=[0]>(q)
    y = Relu(m)
""",
    "norm by hand": FEATURES
    + ROWS
    + """
    mean = ReduceMean<axes=[-1]>(y0)
    d = Sub(y0, mean)
    sq = Mul(d, d)
    var = ReduceMean<axes=[-1]>(sq)
    ve = Add(var, eps)
    sd = Sqrt(ve)
    z = Div(d, sd)
    zg = Mul(z, g)
    y = MatMul(zg, f)
""",
    "attention": FEATURES
    + ROWS
    + """
    i = MatMul(y0, qkv)
    r = Shape(i)
    n = Slice(r, axis, next)
    shape = Concat<axis=0>(n, left, threes, heads, six)
    j = Reshape(i, shape)
    k = Transpose<perm=[2,0,3,1,4]>(j)
    q1 = Slice(k, axis, next, axis)
    k1 = Slice(k, next, last, axis)
    v1 = Slice(k, last, threes, axis)
    q = Squeeze(q1, axis)
    kk = Squeeze(k1, axis)
    v = Squeeze(v1, axis)
    kt = Transpose<perm=[0,1,3,2]>(kk)
    l = MatMul(q, kt)
    sm = Softmax(l)
    o = MatMul(sm, v)
    ot = Transpose<perm=[0,2,1,3]>(o)
    merged = Concat<axis=0>(n, left, width)
    e = Reshape(ot, merged)
    ep = MatMul(e, p)
    res = Add(ep, y0)
    y = MatMul(res, f)
""",
}
FREE = {
    "anchors": [(16, 8), (24, 12)],
    "map to sequence": [(16, 8)],
    "norm by hand": [(16, 8), (24, 12)],
    "attention": [(16, 8), (24, 12), (72, 36)],
}
"""The widths of the families that each of them can spare channels of, before and after."""


def net(name: str, sizes: str = "n,3,h,w") -> ModelProto:
    text = f'<ir_version: 8, opset_import: ["" : 13]> g (float[{sizes}] x) => (float y) {{{NETS[name]}}}'
    model = parser.parse_model(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    for key, value in WEIGHTS.items():
        array = value.astype(np.float32) if value.dtype.kind == "f" else value
        model.graph.initializer.append(numpy_helper.from_array(array, key))
    return model


def read(name: str, *shape: int) -> Graph:
    return OnnxFrontend().read(net(name), (normal(*shape),)).graph


def test_the_batch_keeps_its_name_wherever_it_stands_and_all_other_sizes_are_those_of_the_example() -> None:
    graph = read("map to sequence", 2, 3, 4, 6)
    shapes = {node.id: node.type.shape for node in graph if node.type is not None}
    assert (shapes["rb"], shapes["steps"], shapes["q"]) == (("n", 24, 2, 3), (3, "n", 24, 2), (3, "n", 48))
    assert not graph.sizes_are_fixed


def test_a_computed_reshape_states_no_number_that_follows_from_open_sizes() -> None:
    op = read("map to sequence", 1, 3, 4, 6)["q"].op
    assert isinstance(op, ops.Opaque)
    assert op.coupling == ops.Reshape((0, 0, -1))


@pytest.mark.filterwarnings("ignore::reparam_compiler.UnrepairedPruneWarning")
@pytest.mark.parametrize("name", NETS)
def test_what_is_cut_at_one_size_is_cut_alike_at_another_and_runs_at_a_third(name: str) -> None:
    model, x = net(name), normal(3, 3, 10, 16)
    options = {"ratio": 0.5, "round_to": 2, "return_report": True}
    found, report = reparam_compiler.prune(model, (normal(1, 3, 8, 12),), **options)
    again, _ = reparam_compiler.prune(model, (normal(2, 3, 6, 10),), **options)
    assert [(family.before, family.after) for family in report.plan.families] == FREE[name]
    assert report.plan.relative_error < 1e-12
    np.testing.assert_array_equal(run(found, {"x": x})[0], run(again, {"x": x})[0])


@pytest.mark.parametrize("name", NETS)
def test_calibration_data_binds_them_and_is_run_at_any_batch(name: str) -> None:
    data = normal(16, 3, 8, 12)
    pruned, report = reparam_compiler.prune(net(name), ratio=0.5, round_to=2, calibration=data, return_report=True)
    gain = report.plan.gain
    assert gain is not None
    assert gain.samples == 2
    assert gain.after < gain.before
    assert run(pruned, {"x": data})[0].shape == run(net(name), {"x": data})[0].shape


def test_a_stated_rank_that_the_model_does_not_have_is_not_believed() -> None:
    model = net("map to sequence")
    model.graph.output[0].type.tensor_type.shape.dim.add().dim_param = "length"
    graph = OnnxFrontend().read(model, (normal(1, 3, 4, 6),)).graph
    assert graph["y"].type == TensorType("f32", (1, "n", 48))
