"""Names that are still free, and the levels of dotted paths.

free_name("fused", {"fused", "fused_1"})                             "fused_2"
common_path([["stage1", "0", "conv"], ["stage1", "0", "bn"]])        ["stage1", "0"]
prefixes("stage1.0.conv")                                            ["stage1", "stage1.0", "stage1.0.conv"]
"""

from collections.abc import Callable, Collection, Sequence
from itertools import accumulate, count, takewhile


def free_name(wanted: str, taken: Collection[str] | Callable[[str], bool], separator: str = "_") -> str:
    """The wanted name, or the first of `wanted_1`, `wanted_2` … that is not taken.

    taken: the names that exist, or a function that says whether a name does.
    """
    is_taken = taken if callable(taken) else taken.__contains__
    numbered = (f"{wanted}{separator}{number}" if number else wanted for number in count())
    return next(name for name in numbered if not is_taken(name))


def common_path(paths: Sequence[Sequence[str]]) -> list[str]:
    """The levels that all paths begin with; none where there are no paths."""
    levels = zip(*paths, strict=False)
    return [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]


def prefixes(path: str) -> list[str]:
    """The dotted paths of all that a path is in, outermost first, and the path itself."""
    return list(accumulate(path.split("."), "{}.{}".format))
