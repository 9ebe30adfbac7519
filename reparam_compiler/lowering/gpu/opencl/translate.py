"""Scheduled kernels, and the calls of them in Relax, to a `Program`.

    PrimFuncs --TVM's passes, up to its split of host and device--> device: OpenCL C;  host: launches, scratch
    main      --call_tir with outputs, TVM's memory plan----------> calls in order, storages

TVM's own code for the host is not made: of each kernel's host function the launches are read, and what it allocates between
them. Each must be of sizes that are known now; what else a host would have to do is refused.
"""

import importlib
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.ir.instrument import pass_instrument
from tvm.ir.transform import PassContext, Sequential
from tvm.relax.backend.gpu_generic import pipeline
from tvm.target import Target

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.gpu.opencl.program import Call, Launch, Output, Program, Size
from reparam_compiler.lowering.relax.canonicalize import op_name
from reparam_compiler.lowering.relax.memory_plan import VIEWS

SPLIT = "tirx.SplitHostDevice"
OF_C = re.compile(
    r"\b(?P<name>acosh?|asinh?|atan[2h]?|cbrt|ceil|copysign|cosh?|erfc?|exp|exp10|exp2|expm1|fabs|fdim|floor|fma|fmax|fmin"
    r"|fmod|hypot|ldexp|lgamma|log|log10|log1p|log2|logb|nearbyint|nextafter|pow|remainder|rint|round|sinh?|sqrt|tanh?|tgamma|trunc)f?\("
)
IN_OPENCL = {"nearbyint": "rint"}
LONGEST = 100
"""Letters of a function's name: TVM's has those of all that is fused. PoCL makes a file's name of it, and ends the process
where that is too long."""
WRITTEN_OUT = "pragma_unroll_explicit"
HOST = Target({"kind": "c"})
"""Of which no code is made."""
AXES = ("x", "y", "z")


def program_of(module: Any, target: Target) -> Program:
    """The program of a lowered module, Relax whose `main` calls scheduled kernels.

    Raises: LoweringError where a size is not known, or something but a kernel is called.
    """
    passes = [*pipeline.dataflow_lower_passes(target), relax.transform.StaticPlanBlockMemory()]
    main = Sequential(passes)(module)["main"]
    kernels = {str(var.name_hint): func for var, func in module.functions_items() if isinstance(func, tirx.PrimFunc)}
    source, hosts = _built(kernels, target)
    return _Walk(hosts).program(main, source)


def program_of_kernel(func: Any, target: Target) -> Program:
    """The program of one scheduled PrimFunc: its last buffer is the output, the others are inputs."""
    source, hosts = _built({"kernel": func}, target)
    buffers = hosts["kernel"].buffers
    sizes = [*map(_bytes, buffers), *hosts["kernel"].scratch]
    *_, out = buffers
    call = Call("kernel", _shape(out), hosts["kernel"].placed(range(len(sizes))))
    output = Output(len(buffers) - 1, call.shape, str(out.dtype))
    return Program(source, tuple(sizes), len(buffers) - 1, (call,), (output,))


@dataclass(frozen=True, slots=True, eq=False)
class _Host:
    """What the host does for a kernel: launches, whose arguments are numbers of its buffers and then of its scratch.

    scratch: the bytes of each allocation between launches.
    """

    buffers: Sequence[Any]
    scratch: Sequence[int]
    launches: Sequence[Launch]

    def placed(self, places: Sequence[int]) -> tuple[Launch, ...]:
        """The launches with the program's numbers of these buffers."""
        return tuple(replace(each, arguments=tuple(places[number] for number in each.arguments)) for each in self.launches)


def _built(kernels: dict[str, Any], target: Target) -> tuple[str, dict[str, _Host]]:
    """The OpenCL C of all kernels, and what the host does for each, by name."""
    if not kernels:
        return "", {}
    split: list[Any] = []

    @pass_instrument
    class Keeper:
        """Keeps the module that the host's and the device's functions are in."""

        def run_after_pass(self, module: Any, info: Any) -> None:
            if str(info.name) == SPLIT:
                split.append(module)

    bound = target.with_host(HOST)
    short = {name: name if len(name) <= LONGEST else f"{name[:LONGEST]}_{number}" for number, name in enumerate(kernels)}
    funcs = {short[name]: _rolled(func).with_attr("global_symbol", short[name]) for name, func in kernels.items()}
    lower, _, finish = tirx.get_tir_pipeline("s_tir")
    context = PassContext.current()
    with PassContext(
        opt_level=context.opt_level,
        disabled_pass=list(context.disabled_pass),
        instruments=[*context.instruments, Keeper()],
        config=dict(context.config),
    ):
        lowered = lower(tirx.transform.BindTarget(bound)(tvm.IRModule(funcs)))
        _, devices = importlib.import_module("tvm.tirx.build").split_host_device_mods(lowered)
        parts = [finish()(part) for part in devices.values()]
    make = tvm.get_global_func(f"target.build.{target.kind.name}")
    source = "\n".join(make(part, target).inspect_source("cl") for part in parts)
    found = {str(var.name_hint): func for var, func in split[0].functions_items()}
    return _in_opencl(source), {name: _host(name, found[short[name]]) for name in kernels}


def _in_opencl(source: str) -> str:
    """The source with OpenCL's names of the functions that TVM calls as C does: `tanf(x)` is `tan(x)` of any dtype."""
    return OF_C.sub(lambda call: f"{IN_OPENCL.get(call['name'], call['name'])}(", source)


def _rolled(func: Any) -> Any:
    """The function with loops that its driver shall unroll left to it, as pragmas: a fourteenth of the source of A0's kernels.

    On PoCL that is compiled in 40 % of the time, and runs twice as fast.
    """

    def marked(loop: Any) -> Any:
        if WRITTEN_OUT not in loop.annotations:
            return loop
        annotations = {**dict(loop.annotations), WRITTEN_OUT: tirx.IntImm("int32", 0)}
        return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, loop.body, loop.thread_binding, annotations)

    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.For, marked), order="post"))


def _host(name: str, func: Any) -> _Host:
    """The launches of a host function. Raises LoweringError where it does anything else."""
    numbers = {param: number for number, param in enumerate(func.params)}
    scratch: list[int] = []
    launches: list[Launch] = []
    for statement in func.body.seq if isinstance(func.body, tirx.SeqStmt) else [func.body]:
        if isinstance(statement, tirx.AllocBuffer):
            numbers[statement.buffer] = len(func.params) + len(scratch)
            scratch.append(_bytes(statement.buffer))
        elif isinstance(statement, tirx.DeclBuffer):
            numbers[statement.buffer] = numbers[_buffer(statement.data)]
        elif isinstance(statement, tirx.Evaluate) and op_name(statement.value) == "tirx.call_ffi_kernel":
            launches.append(_launch(statement.value, numbers))
        else:
            raise LoweringError(
                f"{name}: found {type(statement).__name__} between its launches; a kernel for OpenCL is launches of known "
                "sizes alone. Compile for llvm, or rewrite the op in the model"
            )
    return _Host(list(func.params), scratch, launches)


def _launch(call: Any, numbers: dict[Any, int]) -> Launch:
    """The launch that a call of the host means: the function, the data of its buffers, the extents of its axes."""
    axes = [str(axis) for axis in call.attrs.launch_params]
    function, *rest = call.args
    arguments, extents = rest[: len(rest) - len(axes)], rest[len(rest) - len(axes) :]
    of_axis = {axis: int(extent) for axis, extent in zip(axes, extents, strict=True)}
    return Launch(
        str(function.value),
        tuple(numbers[_buffer(argument)] for argument in arguments),
        _size(of_axis, "blockIdx"),
        _size(of_axis, "threadIdx"),
    )


def _size(of_axis: dict[str, int], kind: str) -> Size:
    x, y, z = (of_axis.get(f"{kind}.{axis}", 1) for axis in AXES)
    return x, y, z


def _buffer(data: Any) -> Any:
    """The buffer whose data an argument is."""
    return data.args[0]


def _bytes(buffer: Any) -> int:
    return math.prod(_shape(buffer)) * _item(str(buffer.dtype))


def _item(dtype: str) -> int:
    """Bytes of an element."""
    return (int(tvm.DataType(dtype).bits) + 7) // 8


def _shape(of: Any) -> tuple[int, ...]:
    return tuple(map(int, of.shape))


@dataclass(slots=True, eq=False)
class _Walk:
    """`main`, binding by binding.

    hosts: of the kernels. sizes: of the buffers so far. places: the buffer of a tensor or a storage, or those of a tuple.
    """

    hosts: dict[str, _Host]
    sizes: list[int] = field(default_factory=list)
    places: dict[Any, Any] = field(default_factory=dict)
    calls: list[tuple[str, list[int]]] = field(default_factory=list)

    def program(self, main: Any, source: str) -> Program:
        """The program of `main`."""
        for param in main.params:
            self.places[param] = self._buffer(_bytes_of(param.ty))
        for block in main.body.blocks:
            for binding in block.bindings:
                self.places[binding.var] = self._place(binding.value)
        first = len(self.sizes)
        needs = [self.hosts[name].scratch for name, _ in self.calls]
        self.sizes += [max(sizes) for sizes in itertools.zip_longest(*needs, fillvalue=0)]
        calls = tuple(self._call(name, places, first) for name, places in self.calls)
        outputs = tuple(_outputs(main.ret_ty, self.places[main.body.body]))
        return Program(source, tuple(self.sizes), len(main.params), calls, outputs)

    def _call(self, name: str, places: list[int], first: int) -> Call:
        """A call of a kernel. first: the number of the first scratch buffer; kernels share them, as one runs at a time."""
        host = self.hosts[name]
        every = [*places, *range(first, first + len(host.scratch))]
        return Call(name, _shape(host.buffers[-1]), host.placed(every))

    def _buffer(self, size: int) -> int:
        """A new buffer of so many bytes."""
        self.sizes.append(size)
        return len(self.sizes) - 1

    def _place(self, value: Any) -> Any:
        """Where the value of a binding lies."""
        if isinstance(value, relax.Var):
            return self.places[value]
        if isinstance(value, relax.Tuple):
            return [self._place(each) for each in value.fields]
        if isinstance(value, relax.TupleGetItem):
            return self._place(value.tuple_value)[value.index]
        if not isinstance(value, relax.Call):
            raise _refusal(f"a {type(value).__name__}")
        if isinstance(value.op, tvm.ir.GlobalVar):
            self.calls.append((str(value.op.name_hint), [self._place(each) for each in value.args]))
            return None
        name = op_name(value)
        if name == "relax.memory.alloc_storage":
            return self._buffer(int(value.args[0].values[0]))
        if name == "relax.builtin.alloc_tensor":
            return self._buffer(_bytes_of(value.ty))
        if name == "relax.memory.alloc_tensor" and int(value.args[1].value) == 0:
            return self._place(value.args[0])
        if name in VIEWS:
            return self._place(value.args[0])
        raise _refusal(f"a call of {name or value.op}")


def _refusal(found: str) -> LoweringError:
    return LoweringError(
        f"main: found {found}; a model for OpenCL is calls of kernels on tensors of known sizes alone. Compile for llvm, or "
        "rewrite the op in the model"
    )


def _bytes_of(ty: Any) -> int:
    """Bytes of a tensor. Raises LoweringError where its sizes are not known."""
    return math.prod(_known(ty)) * _item(str(ty.dtype))


def _known(ty: Any) -> tuple[int, ...]:
    sizes = getattr(getattr(ty, "shape", None), "values", None)
    if sizes is None or not all(isinstance(size, tirx.IntImm) for size in sizes):
        raise _refusal(f"a value of {ty}")
    return tuple(map(int, sizes))


def _outputs(ty: Any, place: Any) -> Iterator[Output]:
    """The tensors of a result, flattened."""
    if isinstance(ty, relax.TupleType):
        for each, at in zip(ty.fields, place, strict=True):
            yield from _outputs(each, at)
    else:
        yield Output(place, _known(ty), str(ty.dtype))
