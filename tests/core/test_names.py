"""Names that are free, and what paths have in common."""

from reparam_compiler.core.names import common_path, free_name, prefixes


def test_a_free_name_is_the_wanted_one_or_the_first_with_a_number_that_is_not_taken() -> None:
    assert free_name("fused", set()) == "fused"
    assert free_name("fused", {"fused", "fused_1", "fused_3"}) == "fused_2"
    assert free_name("fused_1", {"fused", "fused_1"}) == "fused_1_1"
    assert free_name("outputs", ["outputs"], ":") == "outputs:1"


def test_what_is_taken_may_be_told_by_a_function_that_is_asked_no_more_than_needed() -> None:
    asked: list[str] = []

    def is_taken(name: str) -> bool:
        asked.append(name)
        return name in ("conv", "conv_1")

    assert free_name("conv", is_taken) == "conv_2"
    assert asked == ["conv", "conv_1", "conv_2"]


def test_paths_have_the_levels_in_common_with_which_all_begin() -> None:
    assert common_path([["stage1", "0", "conv"], ["stage1", "0", "bn"]]) == ["stage1", "0"]
    assert common_path([["a", "b"], ["a"]]) == ["a"]
    assert common_path([["a", "x"], ["b", "x"]]) == []
    assert common_path([["a", "b"]]) == ["a", "b"]
    assert common_path([]) == []


def test_prefixes_are_what_a_path_is_in_and_itself() -> None:
    assert prefixes("stage1.0.conv") == ["stage1", "stage1.0", "stage1.0.conv"]
    assert prefixes("conv") == ["conv"]
