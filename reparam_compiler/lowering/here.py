"""What this machine is to the kernels: its CPU and what is known of it, its compilers, the devices that its drivers offer."""

import shutil
from dataclasses import dataclass

import tvm
from tvm.support import cc
from tvm.target import Target

from reparam_compiler.lowering.cpu.machine import native, vector_unit
from reparam_compiler.lowering.cpu.measured_family import known_family, processor
from reparam_compiler.lowering.cpu.tuning import CpuTuning
from reparam_compiler.lowering.gpu.cuda.backend import CudaBackend
from reparam_compiler.lowering.gpu.opencl import devices
from reparam_compiler.lowering.search.shared import shipped


@dataclass(frozen=True, slots=True)
class Machine:
    """This machine.

    cpu: LLVM's name of it. processor: the maker's. vector_bytes, registers: of its SIMD unit. cores: that a run may keep busy.
    costs: where the constants of the choice among kernels are from: shipped, measured here, or borrowed from another CPU.
    family: whom its records are shared with. records: how many layers' are shipped for it, and for as many cores.
    compiler: what links libraries. nvcc, cuda, opencl: the compiler, the device; each "" where there is none.
    why_no_opencl: what stands in the way of a device.
    """

    cpu: str
    processor: str
    vector_bytes: int
    registers: int
    cores: int
    costs: str
    family: str
    records: int
    compiler: str
    nvcc: str
    cuda: str
    opencl: str
    why_no_opencl: str


def machine() -> Machine:
    """This machine, as it is found in a second; nothing is measured."""
    target = Target(native())
    family = known_family(target)
    unit = vector_unit(target, family)
    peers = CpuTuning(target, unit, family).peers
    why_no_opencl, gpu = devices.why_none(), tvm.device(CudaBackend.device_name, 0)
    return Machine(
        cpu=str(target.attrs["mcpu"]),
        processor=processor(),
        vector_bytes=unit.bytes,
        registers=unit.registers,
        cores=unit.threads,
        costs=family.origin,
        family="" if peers is None else peers.family,
        records=0 if peers is None else len(shipped(peers)),
        compiler=shutil.which(cc.get_cc() or "") or "",
        nvcc=shutil.which("nvcc") or "",
        cuda=str(gpu.device_name) if gpu.exist else "",
        opencl="" if why_no_opencl else devices.device_here().name,
        why_no_opencl=why_no_opencl,
    )
