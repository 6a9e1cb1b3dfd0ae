# SPDX-License-Identifier: Apache-2.0
"""A real Opacus run becomes one of ours: priced, sealed, reported, gone on with. What has no price is refused."""

import pytest
import torch
from opacus import PrivacyEngine
from opacus.data_loader import DPDataLoader
from opacus.schedulers import ExponentialNoise
from small import small_data, small_model
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from privguard.accounting.accountant import spent
from privguard.accounting.calibrate import dp_sgd
from privguard.accounting.ledger import Ledger
from privguard.checkpoint.keys.key import Key
from privguard.checkpoint.store import load
from privguard.errors import PrivacyError, ResumeError, UnsupportedModelError
from privguard.integrations.opacus import fixed, take_over
from privguard.integrations.torch_loop import privatize
from privguard.report.assemble import assemble
from privguard.runs.options import RunOptions
from privguard.training.attach import attach

pytestmark = [
    pytest.mark.filterwarnings("ignore:Secure RNG turned off"),
    pytest.mark.filterwarnings("ignore:Full backward hook"),
    pytest.mark.filterwarnings("ignore:Optimal order is the"),
]
KEY = Key.generate_symmetric()


class OpacusRun:
    """The four objects of a private loop of Opacus', and the loop."""

    def __init__(self, *, accountant="rdp", **private):
        self.bare = small_model()
        self.plain_loader = DataLoader(small_data(), batch_size=20, shuffle=True)
        self.engine = PrivacyEngine(accountant=accountant)
        settings = {"noise_multiplier": 1.1, "max_grad_norm": 0.5, **private}
        self.model, self.optimizer, self.loader = self.engine.make_private(
            module=self.bare,
            optimizer=torch.optim.Adam(self.bare.parameters(), lr=0.01),
            data_loader=self.plain_loader,
            **settings,
        )

    def epoch(self):
        for inputs, targets in self.loader:
            self.optimizer.zero_grad()
            functional.cross_entropy(self.model(inputs), targets).backward()
            self.optimizer.step()
        return self

    def taken_over(self, folder, **more):
        settings = {"delta": 1e-3, "run": folder, "seal_to": [KEY], **more}
        return take_over(self.engine, self.model, self.optimizer, self.loader, **settings)


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize(("accountant", "looser"), [("rdp", 0.7), ("prv", 0.98)])
def test_its_history_is_priced_by_name_whatever_its_own_accountant_says(tmp_path, accountant, looser):
    run = OpacusRun(accountant=accountant).epoch().epoch()
    taken = run.taken_over(tmp_path / "run")
    assert Ledger.read(tmp_path / "run" / "ledger.jsonl").spent() == [
        (dp_sgd(sample_rate=0.2, noise_multiplier=1.1), 10)
    ]
    own = run.engine.get_epsilon(1e-3)
    assert taken.claim.epsilon == spent([(dp_sgd(sample_rate=0.2, noise_multiplier=1.1), 10)], delta=1e-3).epsilon
    assert looser * own < taken.claim.epsilon < own
    assert taken.claim.method == "pld"


def test_noise_that_was_scheduled_is_priced_step_by_step(tmp_path):
    run = OpacusRun()
    schedule = ExponentialNoise(run.optimizer, gamma=0.9)
    for _ in range(3):
        run.epoch()
        schedule.step()
    run.taken_over(tmp_path / "run")
    noises = [event.event.noise_multiplier for event, times in Ledger.read(tmp_path / "run" / "ledger.jsonl").spent()]
    assert sorted(noises, reverse=True) == pytest.approx([1.1, 0.99, 0.891])


def test_its_report_says_what_nobody_can_know(tmp_path):
    taken = OpacusRun().epoch().taken_over(tmp_path / "run")
    report = assemble(tmp_path / "run")
    assert report.claim == taken.claim
    assert report.settled
    assert report.reserved == 5
    said = " ".join(report.assumptions)
    assert set(taken.claim.unchecked) <= set(report.assumptions)
    for unknown in ("counted by Opacus in memory", "word of whoever trained", "default generator (secure mode off)"):
        assert unknown in said
    assert "Nothing looked for leaks between examples before the first step: the steps were taken before" in said


def test_its_state_is_sealed_and_our_engine_goes_on_with_it(tmp_path):
    run = OpacusRun().epoch()
    taken = run.taken_over(tmp_path / "run", steps=12)
    sealed = load(taken.snapshot, KEY)
    assert set(sealed.weights) == set(small_model().state_dict())
    model, optimizer = small_model(), None
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    private = privatize(
        model,
        optimizer,
        run.plain_loader,
        taken.plan,
        run=taken.folder,
        seal_to=[KEY],
        resume=True,
        options=RunOptions(quiet=True),
    )
    assert torch.equal(flat(model), flat(run.bare))
    assert int(optimizer.state_dict()["state"][0]["step"]) == 5
    for inputs, targets in private.batches():
        private.backward(functional.cross_entropy(private.model(inputs), targets, reduction="none"))
        private.step()
    history = Ledger.read(tmp_path / "run" / "ledger.jsonl").spent()
    assert sum(times for _, times in history) == 12
    assert private.claim().epsilon == spent([(dp_sgd(sample_rate=0.2, noise_multiplier=1.1), 12)], delta=1e-3).epsilon
    kept = taken.claim.unchecked  # what is said of the steps that Opacus took stays, whatever is added
    assert private.claim().unchecked[: len(kept)] == kept


def test_the_objects_of_the_run_itself_go_on_under_our_engine(tmp_path):
    run = OpacusRun().epoch()
    taken = run.taken_over(tmp_path / "run", steps=6)
    model, optimizer = run.model.to_standard_module(), run.optimizer.original_optimizer
    private = privatize(
        model,
        optimizer,
        run.plain_loader,
        taken.plan,
        run=taken.folder,
        seal_to=[KEY],
        resume=True,
        options=RunOptions(quiet=True),
    )
    before = flat(model).clone()
    for inputs, targets in private.batches():
        private.backward(functional.cross_entropy(private.model(inputs), targets, reduction="none"))
        private.step()
    assert not torch.equal(flat(model), before)


def test_a_generator_that_was_handed_over_leaves_no_claim(tmp_path):
    taken = OpacusRun(noise_generator=torch.Generator().manual_seed(1)).epoch().taken_over(tmp_path / "run")
    assert taken.claim is None
    assert assemble(tmp_path / "run").claim is None


def test_a_loader_that_does_not_sample_is_refused(tmp_path):
    with pytest.raises(PrivacyError, match=r"loader=DataLoader: .* ε would be too small"):
        OpacusRun(poisson_sampling=False).epoch().taken_over(tmp_path / "run")


def test_a_loader_with_another_rate_than_the_recorded_one_is_refused(tmp_path):
    run = OpacusRun().epoch()
    run.loader = DPDataLoader.from_data_loader(DataLoader(small_data(), batch_size=10))
    with pytest.raises(PrivacyError, match=r"sample_rate=0.1: the accountant recorded 0.2"):
        run.taken_over(tmp_path / "run")


def test_an_accountant_that_missed_steps_is_refused(tmp_path):
    run = OpacusRun().epoch()
    run.engine.accountant.history = [(1.1, 0.2, 4)]
    with pytest.raises(PrivacyError, match="counts 4 steps, and the optimizer has taken 5"):
        run.taken_over(tmp_path / "run")


def test_nothing_trained_is_nothing_to_take_over(tmp_path):
    with pytest.raises(PrivacyError, match="at least one step"):
        OpacusRun().taken_over(tmp_path / "run")


def test_adaptive_clipping_is_refused(tmp_path):
    adaptive = {
        "clipping": "adaptive", "target_unclipped_quantile": 0.5, "clipbound_learning_rate": 0.2,
        "max_clipbound": 1.0, "min_clipbound": 0.1, "unclipped_num_std": 5.0,
    }  # fmt: skip
    with pytest.raises(PrivacyError, match="AdaClipDPOptimizer"):
        OpacusRun(**adaptive).epoch().taken_over(tmp_path / "run")


def test_per_layer_clipping_is_bounded_by_all_norms_together(tmp_path):
    run = OpacusRun(clipping="per_layer", max_grad_norm=[0.3, 0.4, 0.0, 1.2]).epoch()
    assert run.taken_over(tmp_path / "run").plan.max_grad_norm == pytest.approx(1.3)


def test_a_folder_with_a_run_is_refused(tmp_path):
    run = OpacusRun().epoch()
    run.taken_over(tmp_path / "run")
    with pytest.raises(ResumeError, match="holds a run already"):
        run.taken_over(tmp_path / "run")


def test_a_model_is_fixed_for_our_engine_and_torchs_own_recurrent_layers_stay():
    model = nn.ModuleDict(
        {
            "norms": nn.Sequential(
                nn.BatchNorm1d(6), nn.BatchNorm1d(6, affine=False), nn.InstanceNorm1d(6, track_running_stats=True)
            ),
            "memory": nn.LSTM(6, 4, batch_first=True),
        }
    )
    with pytest.raises(UnsupportedModelError, match="normalises over the batch"):
        attach(model, max_grad_norm=1.0)
    new = fixed(model)
    attach(new, max_grad_norm=1.0).close()
    assert [type(norm) for norm in new["norms"]] == [nn.GroupNorm, nn.GroupNorm, nn.InstanceNorm1d]
    assert type(new["memory"]) is nn.LSTM
    assert type(model["norms"][0]) is nn.BatchNorm1d
    assert type(fixed(nn.BatchNorm2d(4))) is nn.GroupNorm


def test_what_no_fixer_can_mend_is_refused():
    with pytest.raises(UnsupportedModelError, match="max_norm"):
        fixed(nn.Sequential(nn.Embedding(5, 3, max_norm=1.0), nn.BatchNorm1d(3)))
