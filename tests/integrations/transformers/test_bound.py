# SPDX-License-Identifier: Apache-2.0
"""Removing one record, or one user, moves the clipped sum by at most C, for every head, with padding and masks."""

import pytest
import torch
from drive import arguments, make_plan, private_trainer
from zoo import ZOO, Rows

from privguard.errors import PrivacyError
from privguard.records import Unit
from privguard.runs.privacy_unit import ByUser
from privguard.runs.privacy_unit import Unit as Whose
from privguard.training.attach import attach
from privguard.training.one_by_one import OneByOne

C = 0.05
HEADS = [name for name in ZOO if name != "deberta-sequence"]  # that one goes one by one


def clipped_sum(name, rows, folder, **more):
    """The sum of one step: with learning rate 1 and a public denominator of 4, four times the move."""
    torch.manual_seed(0)
    net = ZOO[name][0]()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    unit = Unit.USER if "users" in more else Unit.EXAMPLE
    plan = make_plan(4, max_grad_norm=C, unit=unit)
    args = arguments(folder, 4, per_device_train_batch_size=4)
    private_trainer(net, Rows(rows), folder, plan=plan, args=args, **more).train()
    return torch.cat([4 * (before[n] - p.detach()).double().flatten() for n, p in net.named_parameters()])


@pytest.mark.parametrize("name", HEADS)
def test_one_record_moves_the_sum_by_at_most_the_bound(name, tmp_path):
    """The longest record goes: whatever else its padding touches would show."""
    rows = ZOO[name][1]().rows[:5]
    longest = max(range(5), key=lambda i: rows[i].get("input_ids", torch.zeros(1)).shape[-1])
    whole = clipped_sum(name, rows, tmp_path / "whole")
    without = clipped_sum(name, rows[:longest] + rows[longest + 1 :], tmp_path / "without")
    moved = (whole - without).norm().item()
    assert 0.5 * C < moved <= C * (1 + 1e-4)


@pytest.mark.parametrize("apart", [False, True])
def test_one_user_moves_the_sum_by_at_most_the_bound(tmp_path, apart):
    rows = ZOO["bert-sequence"][1]().rows[:9]
    users = ["a", "a", "a", "a", "b", "b", "c", "d", "d"]

    def of(*names):
        kept = [i for i, user in enumerate(users) if user in names]
        whose = ByUser([users[i] for i in kept], most=4, clip_each_example=apart)
        return clipped_sum("bert-sequence", [rows[i] for i in kept], tmp_path / "".join(names), users=whose)

    least = 0.2 if apart else 0.5  # four records do not point the same way
    assert least * C < (of("a", "b", "c", "d") - of("b", "c", "d")).norm().item() <= C * (1 + 1e-4)


def test_a_users_gradient_is_the_mean_over_their_examples(tmp_path):
    rows = ZOO["gpt2-causal"][1]().rows[:5]
    torch.manual_seed(0)
    net = ZOO["gpt2-causal"][0]()
    wanted = 0
    for mine in ([0, 1, 2], [3, 4]):
        losses = [net(**{n: v[None] for n, v in rows[i].items()}).loss for i in mine]
        gradient = torch.autograd.grad(torch.stack(losses).mean(), list(net.parameters()))
        flat = torch.cat([g.flatten() for g in gradient]).double()
        wanted = wanted + flat * min(1, C / flat.norm())
    found = clipped_sum("gpt2-causal", rows, tmp_path, users=ByUser(["a", "a", "a", "b", "b"], most=3))
    assert torch.allclose(found, wanted, atol=2e-6)


def test_records_apart_are_clipped_to_equal_shares_and_added(tmp_path):
    """The third user has one record of three: it weighs a third, and its fillers nothing."""
    rows = ZOO["gpt2-causal"][1]().rows[:6]
    torch.manual_seed(0)
    net = ZOO["gpt2-causal"][0]()
    wanted = 0
    for row in rows:
        loss = net(**{n: v[None] for n, v in row.items()}).loss
        flat = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))]).double()
        wanted = wanted + flat * min(1, C / 3 / flat.norm())
    whose = ByUser(["a", "a", "a", "b", "b", "c"], most=3, clip_each_example=True)
    assert torch.allclose(clipped_sum("gpt2-causal", rows, tmp_path, users=whose), wanted, atol=2e-6)


def test_noise_covers_what_all_records_of_a_user_may_add():
    net = torch.nn.Linear(3, 2)
    shares = Whose(ByUser("who", most=5, clip_each_example=True)).clipper(
        lambda bound: attach(net, max_grad_norm=bound), 2.0
    )
    assert shares.take().l2_bound == pytest.approx(2.002)
    with pytest.raises(PrivacyError, match="clip_each_example"):
        Whose(ByUser("who", most=5, clip_each_example=True)).clipper(
            lambda bound: OneByOne(torch.nn.Linear(3, 2), max_grad_norm=bound), 2.0
        )
    with pytest.raises(ValueError, match="most=0"):
        ByUser("who", most=0)


def adapted(kind):
    import peft

    torch.manual_seed(0)
    gpt2 = ZOO["gpt2-causal"][0]()
    if kind == "bias":
        for name, parameter in gpt2.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))
        return gpt2
    task = {"task_type": "CAUSAL_LM"}
    config = {
        "lora": lambda: peft.LoraConfig(
            **task, r=2, target_modules=["c_attn", "c_fc"], init_lora_weights=False, fan_in_fan_out=True
        ),
        "dora": lambda: peft.LoraConfig(
            **task, r=2, target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True, use_dora=True
        ),
        "ia3": lambda: peft.IA3Config(
            **task, target_modules=["c_attn", "c_proj"], feedforward_modules=["c_proj"], fan_in_fan_out=True
        ),
        "prompt": lambda: peft.PromptTuningConfig(**task, num_virtual_tokens=3),
        "prompt, encoded": lambda: peft.PromptEncoderConfig(**task, num_virtual_tokens=3, encoder_hidden_size=8),
        "prefix": lambda: peft.PrefixTuningConfig(**task, num_virtual_tokens=3),
    }[kind]()
    return peft.get_peft_model(gpt2, config)


@pytest.mark.usefixtures("fine_grid")
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft with transformers 5.23
@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "prompt", "prompt, encoded", "prefix", "bias"])
def test_adapters_train_exactly(kind, tmp_path):
    """One step without noise or clipping, all examples at once, against ordinary autograd over batches of one."""
    net = adapted(kind)
    rows = ZOO["gpt2-causal"][1]().rows[:6]
    trained = {n: p for n, p in net.named_parameters() if p.requires_grad}
    before = {n: p.detach().clone() for n, p in trained.items()}
    each = [net(**{n: v[None] for n, v in row.items()}).loss for row in rows]
    wanted = torch.autograd.grad(torch.stack(each).mean(), list(trained.values()))
    private_trainer(net, Rows(rows), tmp_path, plan=make_plan(8)).train()
    for (name, parameter), gradient in zip(trained.items(), wanted, strict=True):
        moved = (before[name] - parameter.detach()) * 8 / 6
        assert torch.allclose(moved, gradient, atol=1e-5 * max(1.0, gradient.abs().max().item())), name
