"""Random batch norms are random in all four tensors, the same for the same seed, and leave the rest alone."""

import torch
from torch import nn

from reparam_compiler.zoo import RepVGG, randomise_batch_norm
from reparam_compiler.zoo.repvgg import Architecture

TINY = Architecture((1, 2), (16, 16), strides=(1, 1))


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def test_no_statistic_keeps_its_default() -> None:
    for norm in norms(randomise_batch_norm(RepVGG(TINY))):
        for tensor, default in [(norm.running_mean, 0), (norm.running_var, 1), (norm.weight, 1), (norm.bias, 0)]:
            assert not (tensor == default).any()
        assert (norm.running_var > 0).all()


def test_some_scales_are_negative() -> None:
    assert any((norm.weight < 0).any() for norm in norms(randomise_batch_norm(RepVGG(TINY))))


def test_a_seed_gives_the_same_net_and_another_seed_another() -> None:
    def state(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(5)
        return randomise_batch_norm(RepVGG(TINY), seed).state_dict()

    first, again, other = state(1), state(1), state(2)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["stages.0.0.branches.dense.bn.weight"], other["stages.0.0.branches.dense.bn.weight"])


def test_the_global_generator_and_the_convs_are_left_alone() -> None:
    model = RepVGG(TINY)
    before = {key: value.clone() for key, value in model.state_dict().items() if "conv" in key or "linear" in key}
    state = torch.random.get_rng_state()
    assert randomise_batch_norm(model) is model
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_the_gain_follows_the_number_of_branches() -> None:
    model = randomise_batch_norm(RepVGG(TINY))
    three = model.stages[1][1].branches["dense"].bn.weight.abs()
    two = model.stages[0][0].branches["dense"].bn.weight.abs()
    assert len(model.stages[0][0].branches) == 2
    assert ((three >= 3**-0.5 * 0.8) & (three <= 3**-0.5 * 1.2)).all()
    assert ((two >= 2**-0.5 * 0.8) & (two <= 2**-0.5 * 1.2)).all()


def test_a_batch_norm_without_scale_or_statistics_is_no_obstacle() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.BatchNorm1d(4, track_running_stats=False))
    randomise_batch_norm(model)
    assert not (model[0].running_mean == 0).any()
    assert not (model[1].weight == 1).any()
