"""One-op models of torch: moves, picks and writes of elements, products, tensors made (`op_coverage_torch_tensors.py`)."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.op_coverage_torch_tensors import Case, flags, real, whole


def cases() -> Iterator[Case]:
    """All of them."""
    for family in (movements, picks, writes, products, made):
        yield from family()


def movements() -> Iterator[Case]:
    """Moves of elements."""
    x, wide = real(2, 3, 4), real(2, 6, 4, 4)
    yield "reshape", lambda a: a.reshape(6, -1), x
    yield "view of transpose", lambda a: a.transpose(1, 2).reshape(2, 12), x
    yield "flatten", lambda a: a.flatten(1), x
    yield "flatten middle", lambda a: a.flatten(0, 1), x
    yield "unflatten", lambda a: a.unflatten(-1, (2, 2)), x
    yield "squeeze", torch.squeeze, real(1, 3, 1, 2)
    yield "squeeze dim", lambda a: a.squeeze(1), real(1, 3, 1, 2)
    yield "squeeze dim of one", lambda a: a.squeeze(-2), real(1, 3, 1, 2)
    yield "squeeze dims", lambda a: a.squeeze((0, 1, 2)), real(1, 3, 1, 2)
    yield "unsqueeze negative", lambda a: a.unsqueeze(-2), x
    yield "permute", lambda a: a.permute(2, 0, 1), x
    yield "permute negative", lambda a: a.permute(-1, 0, -2), x
    yield "transpose negative", lambda a: a.transpose(-1, -3), x
    yield "movedim", lambda a: a.movedim(0, -1), x
    yield "t", torch.t, real(3, 4)
    yield "mT", lambda a: a.mT, x
    yield "expand", lambda a: a.expand(5, 3, -1), real(1, 3, 4)
    yield "expand new axes", lambda a: a.expand(2, 5, 3, 4), real(3, 4)
    yield "broadcast_to", lambda a: a.broadcast_to(2, 3, 4), real(3, 1)
    yield "repeat", lambda a: a.repeat(2, 1, 3), x
    yield "repeat new axes", lambda a: a.repeat(2, 1, 1, 2), x
    yield "tile", lambda a: a.tile(2, 2), x
    yield "repeat_interleave", lambda a: a.repeat_interleave(3, dim=1), x
    yield "repeat_interleave flat", lambda a: a.repeat_interleave(2), x
    yield "cat", lambda a, b: torch.cat((a, b), 1), x, real(2, 5, 4)
    yield "cat negative dim", lambda a, b: torch.cat((a, b), -1), x, real(2, 3, 2)
    yield "cat int and float", lambda a, b: torch.cat((a, b)), whole(2, 3), real(2, 3)
    yield "stack", lambda a: torch.stack((a, a + 1), 1), x
    yield "stack negative dim", lambda a: torch.stack((a, a + 1), -1), x
    yield "hstack", lambda a: torch.hstack((a, a)), x
    yield "dstack", lambda a: torch.dstack((a, a)), x
    yield "split", lambda a: a.split(2, dim=1), x
    yield "split sizes", lambda a: a.split((1, 2), dim=1), x
    yield "split negative dim", lambda a: a.split(3, dim=-1), x
    yield "chunk", lambda a: a.chunk(2, dim=1), x
    yield "chunk uneven", lambda a: a.chunk(3, dim=-1), x
    yield "tensor_split", lambda a: torch.tensor_split(a, 3, dim=2), x
    yield "unbind", lambda a: a.unbind(1), x
    yield "unbind negative dim", lambda a: a.unbind(-1), x
    yield "flip", lambda a: a.flip(1), x
    yield "flip dims", lambda a: a.flip((0, -1)), x
    yield "fliplr", torch.fliplr, x
    yield "rot90", lambda a: torch.rot90(a, 1, (1, 2)), x
    yield "rot90 thrice", lambda a: torch.rot90(a, 3, (0, 2)), x
    yield "roll", lambda a: a.roll(1, 1), x
    yield "roll negative", lambda a: a.roll((-1, 2), (0, -1)), x
    yield "roll flat", lambda a: a.roll(5), x
    yield "slice", lambda a: a[:, 1:3], x
    yield "slice step", lambda a: a[:, :, ::2], x
    yield "slice negative", lambda a: a[:, -2:, :-1], x
    yield "slice beyond the end", lambda a: a[:, 1:99], x
    yield "slice ellipsis and none", lambda a: a[..., None, 1:], x
    yield "select", lambda a: a[:, 1], x
    yield "select negative", lambda a: a[:, -1], x
    yield "narrow", lambda a: a.narrow(2, 1, 2), x
    yield "narrow negative", lambda a: a.narrow(-1, -3, 2), x
    yield "diagonal", lambda a: a.diagonal(), real(4, 4)
    yield "diagonal offset dims", lambda a: a.diagonal(1, 1, 2), x
    yield "diag_embed", torch.diag_embed, real(3, 4)
    yield "diag", torch.diag, real(4)
    yield "tril", torch.tril, x
    yield "triu offset", lambda a: a.triu(1), x
    yield "tril negative offset", lambda a: a.tril(-1), x
    yield "pixel_shuffle", lambda a: torch.pixel_shuffle(a, 2), real(1, 8, 3, 5)
    yield "pixel_unshuffle", lambda a: torch.pixel_unshuffle(a, 2), real(1, 2, 4, 6)
    yield "channel_shuffle", lambda a: torch.channel_shuffle(a, 3), wide
    yield "channel shuffle by views", lambda a: a.view(2, 3, 2, 4, 4).transpose(1, 2).reshape(2, 6, 4, 4), wide
    yield "unfold of a tensor", lambda a: a.unfold(2, 3, 1), x
    yield "unfold of a tensor step", lambda a: a.unfold(1, 2, 2), real(2, 6, 4)
    yield "as_strided", lambda a: a.as_strided((3, 2), (2, 1)), real(12)
    yield "as_strided overlapping", lambda a: a.as_strided((5, 3), (2, 1)), real(12)
    yield "meshgrid", lambda a, b: torch.meshgrid(a, b, indexing="ij"), real(3), real(4)
    yield "meshgrid xy", lambda a, b: torch.meshgrid(a, b, indexing="xy"), real(3), real(4)
    yield "cartesian_prod", torch.cartesian_prod, real(3), real(2)
    yield "contiguous channels_last", lambda a: a.contiguous(memory_format=torch.channels_last) * 2, wide


def picks() -> Iterator[Case]:
    """Elements picked by indices."""
    x, rows, columns = real(4, 5, 3), torch.tensor([0, 3, 1]), torch.tensor([2, -1, 4])
    yield "index_select", lambda a, i: a.index_select(1, i), x, rows
    yield "index_select negative dim", lambda a, i: a.index_select(-2, i), x, rows
    yield "gather", lambda a, i: a.gather(1, i), real(4, 5), whole(4, 3, low=0, high=5)
    yield "gather negative dim", lambda a, i: a.gather(-2, i), real(4, 5), whole(2, 5, low=0, high=4)
    yield "gather fewer rows", lambda a, i: a.gather(1, i), real(4, 5), whole(2, 7, low=0, high=5)
    yield "take", lambda a, i: a.take(i), real(4, 5), torch.tensor([0, 19, 7])
    yield "take negative", lambda a, i: a.take(i), real(4, 5), torch.tensor([-1, 3])
    yield "take_along_dim", lambda a, i: torch.take_along_dim(a, i, 1), real(4, 5), whole(4, 2, low=0, high=5)
    yield "index one", lambda a, i: a[i], x, rows
    yield "index one negative", lambda a, i: a[i], x, torch.tensor([-1, 0])
    yield "index second", lambda a, i: a[:, i], x, columns
    yield "index second of two rows", lambda a, i: a[:, i], x, whole(2, 2, low=0, high=5)
    yield "index paired", lambda a, i, j: a[i, j], x, rows, columns
    yield "index paired broadcast", lambda a, i, j: a[i[:, None], j], x, rows, columns
    yield "index paired last", lambda a, i, j: a[:, i, j], x, torch.tensor([0, 4, 2]), torch.tensor([0, 2, 1])
    yield "index paired apart", lambda a, i, j: a[i, :, j], x, rows, torch.tensor([0, 2, 1])
    yield "index grid", lambda a, i, j: a[:, i[:, None], j[None]], x, rows, torch.tensor([0, 2])
    yield "index by list", lambda a: a[:, [0, 2, 4]], x
    yield "index by int32", lambda a, i: a[i], x, rows.int()
    yield "index by mask constant", lambda a: a[:, torch.tensor([True, False, True, True, False])], x
    yield "index three", lambda a, i, j, k: a[i, j, k], x, rows, columns, torch.tensor([0, 1, 2])
    yield "embedding", lambda i, w: torch.nn.functional.embedding(i, w), whole(2, 3, low=0, high=7), real(7, 4)
    yield "one_hot", lambda i: torch.nn.functional.one_hot(i, 5), whole(2, 3, low=0, high=5)
    yield "masked_scatter", lambda a, m, s: a.masked_scatter(m, s), real(3, 4), flags(3, 4), real(12)


def writes() -> Iterator[Case]:
    """Elements written by indices."""
    x, i = real(4, 5), whole(2, 5, low=0, high=4)
    distinct = torch.stack([torch.randperm(4)[:2] for _ in range(5)], 1)
    yield "scatter", lambda a, j, s: a.scatter(0, j, s), x, distinct, real(2, 5)
    yield "scatter number", lambda a, j: a.scatter(0, j, 7.0), x, distinct
    yield "scatter negative dim", lambda a, j, s: a.scatter(-1, j, s), x, distinct.T.sort(1)[0].narrow(0, 0, 4), real(4, 2)
    yield "scatter smaller source", lambda a, j, s: a.scatter(0, j, s), x, distinct[:, :3], real(2, 5)
    yield "scatter_add", lambda a, j, s: a.scatter_add(0, j, s), x, i, real(2, 5)
    yield "scatter_add negative dim", lambda a, j, s: a.scatter_add(-1, j, s), x, whole(4, 3, low=0, high=5), real(4, 3)
    for reduction in ("sum", "prod", "amax", "amin", "mean"):
        yield (
            f"scatter_reduce {reduction}",
            lambda a, j, s, r=reduction: a.scatter_reduce(0, j, s, r),
            x,
            i,
            real(2, 5),
        )
    yield (
        "scatter_reduce without itself",
        lambda a, j, s: a.scatter_reduce(0, j, s, "sum", include_self=False),
        x,
        i,
        real(2, 5),
    )
    yield "index_add", lambda a, j, s: a.index_add(0, j, s), x, torch.tensor([0, 2, 0]), real(3, 5)
    yield "index_add alpha", lambda a, j, s: a.index_add(1, j, s, alpha=2), x, torch.tensor([4, 2]), real(4, 2)
    yield "index_copy", lambda a, j, s: a.index_copy(0, j, s), x, torch.tensor([0, 2]), real(2, 5)
    yield "index_fill", lambda a, j: a.index_fill(1, j, 3.0), x, torch.tensor([0, 2])
    yield "index_reduce", lambda a, j, s: a.index_reduce(0, j, s, "amax"), x, torch.tensor([0, 2, 0]), real(3, 5)
    yield "index_put", lambda a, j, k, s: a.index_put((j, k), s), x, torch.tensor([0, 2]), torch.tensor([1, 4]), real(2)
    yield "index_put accumulate", lambda a, j, s: a.index_put((j,), s, True), x, torch.tensor([0, 2, 0]), real(3, 5)
    yield "index_put number", lambda a, j: a.index_put((j,), torch.tensor(1.0)), x, torch.tensor([0, 2])
    yield "write slice", written(slice(1, 3)), x, real(2, 5)
    yield "write slice step", written((slice(None), slice(0, 5, 2))), x, real(4, 3)
    yield "write slice negative", written((slice(None), slice(-2, None))), x, real(4, 2)
    yield "write row", written(1), x, real(5)
    yield "write number", lambda a: zeroed(a), x
    yield "write masked", lambda a, m: masked(a, m), x, flags(4, 5)
    yield "select_scatter", lambda a, s: torch.select_scatter(a, s, 1, -1), x, real(4)
    yield "slice_scatter", lambda a, s: torch.slice_scatter(a, s, 1, 1, 5, 2), x, real(4, 2)
    yield "diagonal_scatter", lambda a, s: torch.diagonal_scatter(a, s), x, real(4)


def written(place: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """`y = x.clone(); y[place] = values`."""

    def write(x: Tensor, values: Tensor) -> Tensor:
        y = x.clone()
        y[place] = values
        return y

    return write


def zeroed(x: Tensor) -> Tensor:
    """A copy with its first row and column set to a number."""
    y = x.clone()
    y[0] = 0
    y[:, 0] = 0.5
    return y


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """A copy with a number where the mask is set."""
    y = x.clone()
    y[mask] = 3.0
    return y


def products() -> Iterator[Case]:
    """Matrix products and einsum."""
    a, b, v = real(3, 4), real(4, 5), real(4)
    yield "mm", torch.mm, a, b
    yield "matmul batched", torch.matmul, real(2, 3, 4), real(2, 4, 5)
    yield "matmul broadcast", torch.matmul, real(2, 1, 3, 4), real(6, 4, 5)
    yield "matmul with a matrix", torch.matmul, real(2, 3, 4), b
    yield "matmul by a vector", torch.matmul, real(2, 3, 4), v
    yield "matmul of a vector", torch.matmul, v, real(2, 4, 5)
    yield "dot", torch.dot, v, real(4)
    yield "mv", torch.mv, a, v
    yield "bmm", torch.bmm, real(2, 3, 4), real(2, 4, 5)
    yield "addmm", lambda c, x, y: torch.addmm(c, x, y, alpha=0.5, beta=2), real(3, 5), a, b
    yield "addmv", lambda c, x, y: torch.addmv(c, x, y), real(3), a, v
    yield "baddbmm", lambda c, x, y: torch.baddbmm(c, x, y, beta=0.5), real(2, 3, 5), real(2, 3, 4), real(2, 4, 5)
    yield "addbmm", lambda c, x, y: torch.addbmm(c, x, y), real(3, 5), real(2, 3, 4), real(2, 4, 5)
    yield "outer", torch.outer, v, real(3)
    yield "kron", torch.kron, real(2, 2), real(3, 2)
    yield "tensordot", lambda x, y: torch.tensordot(x, y, dims=([1], [0])), real(3, 4, 2), b
    yield "matmul of int", torch.matmul, whole(3, 4), whole(4, 5)
    for equation, shapes in EINSUMS.items():
        yield f"einsum {equation}", lambda *xs, e=equation: torch.einsum(e, *xs), *(real(*shape) for shape in shapes)


EINSUMS: Mapping[str, tuple[tuple[int, ...], ...]] = {
    "bij,bjk->bik": ((2, 3, 4), (2, 4, 5)),
    "bhid,bhjd->bhij": ((2, 3, 4, 5), (2, 3, 6, 5)),
    "nchw,c->nhw": ((2, 3, 4, 5), (3,)),
    "ij->ji": ((3, 4),),
    "ij->": ((3, 4),),
    "ii->i": ((4, 4),),
    "i,j->ij": ((3,), (4,)),
    "...ij,...jk->...ik": ((2, 3, 4), (4, 5)),
    "bqc,bchw->bqhw": ((2, 3, 4), (2, 4, 5, 6)),
}


def made() -> Iterator[Case]:
    """Tensors made in the model."""
    x = real(3, 5)
    yield "zeros_like", lambda a: torch.zeros_like(a) + a, x
    yield "ones_like", lambda a: torch.ones_like(a) * a, x
    yield "full_like", lambda a: torch.full_like(a, 0.5) + a, x
    yield "full_like int", lambda a: torch.full_like(a, 2, dtype=torch.int64), x
    yield "new_zeros", lambda a: a.new_zeros(2, 5), x
    yield "new_ones", lambda a: a.new_ones(2, 5) + a[:2], x
    yield "new_full", lambda a: a.new_full((2, 5), 0.25) + a[:2], x
    yield "arange", lambda a: a + torch.arange(5), x
    yield "arange step float", lambda a: a + torch.arange(0.0, 1.0, 0.2), x
    yield "arange negative step", lambda a: a + torch.arange(5, 0, -1), x
    yield "linspace", lambda a: a + torch.linspace(-1, 1, 5), x
    yield "linspace of one", lambda a: a + torch.linspace(2, 5, 1), x
    yield "logspace", lambda a: a + torch.logspace(0, 1, 5), x
    yield "eye", lambda a: a @ torch.eye(5), x
    yield "eye rectangular", lambda a: a @ torch.eye(5, 3), x
    yield "tril_indices", lambda a: a[tuple(torch.tril_indices(3, 3))], x
    yield "constant", lambda a: a * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), x
    yield "scalar constant", lambda a: a * torch.tensor(2.0), x
    yield "hann_window", lambda a: a * torch.hann_window(5), x
    yield "hamming_window", lambda a: a * torch.hamming_window(5), x
