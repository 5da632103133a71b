"""What a row says about a network: hand-counted MACs, and measurements that change nothing."""

import pytest
import torch
from reference import randomise_routers
from torch import nn
from toy_data import Toy

import dggraph
from dggraph.comparing import measuring
from dggraph.comparing.measuring import count_macs, measure, peak_memory
from dggraph.models.registry import load_model

NAMES = {
    "parameters", "static_macs", "macs", "training_time_ratio", "training_memory_bytes",
    "inference_time_ratio_1", "inference_time_ratio_16",
}  # fmt: skip
OF_PATHS = {
    "swap_images", "own_paths_accuracy", "mean_adjacency_accuracy", "other_image_accuracy",
}  # fmt: skip


def test_macs_of_a_plain_network_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 25, 7))
    assert count_macs(net, torch.zeros(1, 3, 5, 5)) == 25 * 27 * 4 + 100 * 7
    assert count_macs(net, torch.zeros(2, 3, 5, 5)) == 25 * 27 * 4 + 100 * 7


def test_macs_are_those_of_the_mean_image() -> None:
    static = load_model("dggraph:resnet14_4", num_classes=4).model
    data, macs = Toy(9, False, 0), count_macs(static, torch.zeros(1, 3, 16, 16))
    net = dggraph.convert(static, torch.zeros(1, 3, 16, 16))
    assert net.macs_table.static == macs
    found = measure(net, static, data, batch_size=8, kept=0.75, rounds=3)
    assert (found["static_macs"], found["macs"]) == (macs, 0.75 * macs)
    baseline = dggraph.baselines.squeeze_excitation(static, torch.zeros(1, 3, 16, 16))
    found = measure(baseline, static, data, batch_size=8, kept=None, rounds=3)
    assert found["static_macs"] == macs
    assert found["macs"] == float(baseline.macs(data[0][0][None])) > macs


def test_a_part_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ValueError("no adjacency\nhere")

    static = load_model("dggraph:resnet14_4", num_classes=4).model
    net = dggraph.convert(static, torch.zeros(1, 3, 16, 16))
    monkeypatch.setattr(measuring, "swap_gates", fail)
    facts = measure(net, static, Toy(9, False, 0), batch_size=8, kept=1.0, rounds=3)
    assert facts["unmeasured"] == {"swapped adjacencies": "ValueError: no adjacency here"}
    assert set(facts) >= NAMES


@pytest.mark.parametrize("is_dynamic", [False, True])
def test_a_measurement_has_all_facts_and_changes_nothing(is_dynamic: bool) -> None:
    torch.manual_seed(0)
    static = load_model("dggraph:resnet14_4", num_classes=4).model
    model: nn.Module = load_model("dggraph:resnet14_5", num_classes=4).model
    if is_dynamic:
        model = randomise_routers(dggraph.convert(static, torch.zeros(1, 3, 16, 16)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    facts = measure(
        model, static, Toy(20, False, 0), batch_size=8, kept=0.5 if is_dynamic else None, rounds=3
    )
    assert set(facts) == (NAMES | OF_PATHS if is_dynamic else NAMES)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    if is_dynamic:
        assert facts["macs"] == 0.5 * facts["static_macs"]
        assert facts["swap_images"] == 20
    assert all(facts[name] > 0 for name in NAMES)


def test_memory_is_in_bytes() -> None:
    assert 5e7 < peak_memory(torch.device("cpu")) < 1e12
