"""What is known of NVIDIA's chips: the data-centre one of each generation, by its architecture."""

from reparam_compiler.lowering.gpu.tiles import Chip

CHIPS = {
    "70": Chip(80, 64, 512),  # V100
    "75": Chip(40, 64, 512),  # T4
    "80": Chip(108, 64, 1024),  # A100
    "86": Chip(84, 128, 512),  # A40
    "89": Chip(142, 128, 1024),  # L40
    "90": Chip(132, 128, 2048),  # H100
    "10": Chip(148, 128, 4096),  # B200
    "12": Chip(170, 128, 1024),
}


def chip_of(arch: str) -> Chip:
    """The chip that a CUDA architecture stands for: the data-centre one of its generation, or the A100 where unknown.

    >>> chip_of("sm_90a").multiprocessors
    132
    """
    return CHIPS.get(arch.removeprefix("sm_")[:2], CHIPS["80"])
