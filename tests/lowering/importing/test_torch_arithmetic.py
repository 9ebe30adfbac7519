"""Arithmetic of two operands and functions of each element: values and dtypes of torch."""

import pytest
import torch
from torch.nn import functional as F

from reparam_compiler import lowering
from tests.support.compiled_functions import differing

pytestmark = pytest.mark.tvm
INTEGERS = torch.tensor([[-9, -7, -1, 0, 4], [5, 6, 7, 8, 9]])
DIVISORS = torch.tensor([2, -3, 4, -5, 7])
FLOATS = torch.tensor([[-9.0, -7.5, -1.0, 0.0, 4.0], [0.3, 1.0, 7.5, 8.0, 9.0]])


def test_integers_are_divided_and_promoted_as_in_torch() -> None:
    functions = {
        "by a fraction": lambda n, d: n / 0.5,
        "by integers": lambda n, d: n / d,
        "number over integers": lambda n, d: 1 / d,
        "floor of negative": lambda n, d: n // d,
        "floor of a number": lambda n, d: 7 // d,
        "trunc": lambda n, d: torch.div(n, d, rounding_mode="trunc"),
        "remainder": lambda n, d: n % d,
        "fmod": lambda n, d: torch.fmod(n, d),
        "less a fraction": lambda n, d: 0.5 - n,
        "above a fraction": lambda n, d: n > 0.5,
        "powers": lambda n, d: n ** d.abs(),
        "joined": lambda n, d: torch.cat((n, d[None] * 0.5)),
        "shifts": lambda n, d: (n.abs() << 2) >> 1,
        "exponential": lambda n, d: torch.exp(n),
        "alpha": lambda n, d: torch.add(n, d, alpha=2),
    }
    assert differing(functions, INTEGERS, DIVISORS) == []


def test_quotients_of_floats_are_rounded_as_in_torch() -> None:
    functions = {
        "floor": lambda x, y: x // y,
        "floor of what rounds": lambda x, y: torch.ones_like(x) // 0.1,
        "trunc": lambda x, y: torch.div(x, y, rounding_mode="trunc"),
        "remainder of what rounds": lambda x, y: torch.ones_like(x) % 0.1,
        "fmod": lambda x, y: torch.fmod(x, y),
        "powers": lambda x, y: torch.stack((x.abs() ** 3, x.abs() ** torch.inf, x.abs() ** -torch.inf)),
        "alpha": lambda x, y: torch.sub(x, y, alpha=0.5),
        "rsub alpha": lambda x, y: torch.rsub(x, y, alpha=0.5),
        "integers and floats": lambda x, y: torch.where(x > 0, x, y.long()),
    }
    assert differing(functions, FLOATS, DIVISORS.float()) == []


def test_elementary_functions_keep_their_digits() -> None:
    small = torch.tensor([1e-6, -3e-6, 0.5, 2.0, -0.7])
    functions = {name: getattr(torch, name) for name in ("expm1", "log1p", "sinh", "cosh", "erfc", "exp2", "signbit")}
    assert differing(functions | {"hypot": lambda x: torch.hypot(x, x), "selu": F.selu, "celu": F.celu}, small, rtol=1e-5) == []


def test_not_a_number_is_not_itself() -> None:
    functions = {"itself": lambda x: x == x, "another": lambda x: x != x, "mean": lambda x: torch.nanmean(x)}
    functions["close"] = lambda x: torch.isclose(x, x + 1e-9) & (x > 1)
    assert differing(functions, torch.tensor([1.0, float("nan"), 2.0])) == []


def test_what_torch_computes_in_one_dtype_stays_the_same_relax_ops() -> None:
    class Plain(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu((x + 1) * 0.5 - x / 3) ** 2

    from reparam_compiler.lowering.importing.importer import to_relax

    text = to_relax(Plain().eval(), torch.zeros(1, 3, 4, 5)).module.script()
    assert "call_tir" not in text
    assert [text.count(f"R.{op}(") for op in ("add", "multiply", "subtract", "divide", "nn.relu")] == [1, 2, 1, 1, 1]


def test_the_programs_that_are_given_stay_as_they_are() -> None:
    program = torch.export.export(torch.nn.SiLU(), (torch.zeros(2, 3),))
    before = str(program.graph)
    lowering.compile(program)
    assert str(program.graph) == before
