#!/usr/bin/env bash
# Guess:  what folds a batch norm into the conv before it makes weights of its own for that conv, or leaves it, where another conv reads
#         the same weights: shared towers with a norm for each domain, heads shared by the levels of a pyramid.
# So:     Aidge's fuse_batchnorm writes into the tensor that both read: the other conv, normed or not, gets the first one's norm too, also
#         where the two share a bias alone. ExecuTorch's lowering to XNNPACK leaves a conv without a norm as it is; where both have one, two
#         folded weights of one name are made, and a conv gets the other's. Neither says a word. Convs that share nothing are right.
# Hurts:  who ships detectors, siamese or domain-adapted nets to small devices: the file is valid, and its outputs are another model's by
#         half of their size, before anything is quantized.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "$@"; }
pip executorch==1.5.1 torch==2.13.0 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6 aidge_core==0.10.1 aidge_onnx==0.10.1 aidge_backend_cpu==0.10.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - 2>"$folder/said" <<'PY' || { tail -5 "$folder/said"; exit 1; }
from importlib.metadata import version

import aidge_backend_cpu, aidge_core, aidge_onnx, numpy as np, onnx, onnxruntime, torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from onnx import TensorProto, helper, numpy_helper
from torch import nn

print(*(f"{name} {version(name)}" for name in ("executorch", "torch", "aidge_core", "aidge_onnx", "onnxruntime")))
torch.manual_seed(0)


class Net(nn.Module):
    """Two convs over x and 2x, each with or without a norm behind it, that share what `shares` says."""

    def __init__(self, shares, norms):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3)
        if "weight" in shares:
            self.second.weight = self.first.weight
        if "bias" in shares:
            self.second.bias = self.first.bias
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) if norm else nn.Identity() for norm in norms)
        for norm in self.norms:
            for tensor in (*norm.parameters(), *norm.buffers()):
                if tensor.dim():
                    nn.init.uniform_(tensor, 0.5, 2)

    def forward(self, x):
        return self.norms[0](self.first(x)) + self.norms[1](self.second(2 * x))


def by_executorch(net, x):
    program = to_edge_transform_and_lower(torch.export.export(net, (x,)), partitioner=[XnnpackPartitioner()]).to_executorch()
    return Runtime.get().load_program(program.buffer).load_method("forward").execute([x])[0].numpy()


def as_onnx(net, shape):
    inits, nodes, names = {"two": np.float32([2])}, [helper.make_node("Mul", ["x", "two"], ["x1"])], {}

    def named(tensor):
        name = names.setdefault(id(tensor), f"t{len(names)}")
        inits[name] = tensor.detach().numpy()
        return name

    for n, (conv, norm) in enumerate(zip((net.first, net.second), net.norms)):
        nodes.append(helper.make_node("Conv", [f"x{n}" if n else "x", named(conv.weight), named(conv.bias)], [f"c{n}"]))
        stats = [norm.weight, norm.bias, norm.running_mean, norm.running_var] if isinstance(norm, nn.BatchNorm2d) else None
        nodes += [helper.make_node("BatchNormalization", [f"c{n}", *map(named, stats)], [f"n{n}"])] if stats else []
    last = [f"n{n}" if isinstance(norm, nn.BatchNorm2d) else f"c{n}" for n, norm in enumerate(net.norms)]
    nodes.append(helper.make_node("Add", last, ["y"]))
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", (1, 6, shape[2] - 2, shape[3] - 2)))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(v, k) for k, v in inits.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def by_aidge(model, x, fuse):
    onnx.save(model, "model.onnx")
    graph = aidge_onnx.load_onnx("model.onnx")
    if fuse:
        aidge_core.fuse_batchnorm(graph)
    graph.set_backend("cpu")
    graph.set_datatype(aidge_core.dtype.float32)
    aidge_core.SequentialScheduler(graph).forward(data=[aidge_core.Tensor(x)])
    (output,) = graph.get_output_nodes()
    return np.array(output.get_operator().get_output(0))


aidge_core.Log.set_console_level(aidge_core.Level.Fatal)
wrong = []
for shares in ("nothing", "weight and bias", "weight", "bias"):
    for norms in ((True, True), (True, False)):
        net, x = Net(shares, norms).eval(), torch.randn(1, 4, 8, 8)
        with torch.no_grad():
            want = net(x).numpy()
        model = as_onnx(net, x.shape)
        for judge in (onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x.numpy()})[0], by_aidge(model, x.numpy(), False)):
            assert np.abs(judge - want).max() < 1e-4
        for tool, got in (("ExecuTorch", by_executorch(net, x)), ("Aidge", by_aidge(model, x.numpy(), True))):
            off = float(np.abs(got - want).max())
            print(f"{tool}, two convs share {shares}, {sum(norms)} normed: off by {off:.2f} of {np.abs(want).max():.2f}")
            if off > 1e-2:
                wrong.append((tool, shares, sum(norms)))
shared = ("weight and bias", "weight", "bias")
expected = [("ExecuTorch", shares, 2) for shares in shared] + [("Aidge", shares, normed) for shares in shared for normed in (1, 2)]
assert sorted(wrong) == sorted(expected), wrong
PY
