# SPDX-License-Identifier: Apache-2.0
"""What an operator says in the environment, and what is refused: engines at their start, requests on arrival."""

import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from privguard.attest.statement import SigningKey
from privguard.errors import MarkError, ProfileMismatchError, TamperedError
from privguard.integrations.vllm import requests as serving
from privguard.integrations.vllm.requests import Operator, Requests
from privguard.watermark.secret import Secret
from privguard.watermark.text.profile import Profile
from privguard.watermark.text.scheme import GreenList, Gumbel, Payload
from privguard.watermark.text.writing.filters import Filters
from privguard.watermark.text.writing.serve import Order

SECRET = Secret(bytes(range(32)))


def profile_of(scheme):
    return Profile(scheme=scheme, key_id=SECRET.key_id, vocabulary="tiny", logits_width=512)


@pytest.fixture
def environment(tmp_path):
    """``environment(scheme)``: the files of an operator and the variables that name them."""

    def write(scheme=None, **changes):
        key = SigningKey.generate()
        profile_of(scheme or Gumbel()).write(tmp_path / "profile.json", by=key)
        key.identity.write(tmp_path / "profile.pem")
        SECRET.write(tmp_path / "mark.secret")
        names = {"PROFILE": "profile.json", "SECRET": "mark.secret", "TRUST": "profile.pem"}
        return {f"PRIVGUARD_MARK_{name}": str(tmp_path / file) for name, file in names.items()} | changes

    return write


def params(**changes):
    fields = {"temperature": 1.0, "min_p": 0.0, "top_k": 0, "top_p": 1.0, "extra_args": None}
    return SimpleNamespace(**{**fields, **changes})


def config(**changes):
    fields = {
        "model_config": model(),
        "scheduler_config": SimpleNamespace(max_num_seqs=8),
        "parallel_config": SimpleNamespace(tensor_parallel_size=1),
        "speculative_config": None,
        "watermark_config": None,
    }
    return SimpleNamespace(**{**fields, **changes})


def model(*, width=512, **changes):
    return SimpleNamespace(**{"logprobs_mode": "raw_logprobs", "get_vocab_size": lambda: width, **changes})


def test_the_environment_names_three_files_and_all_requests_are_marked(environment):
    said = Operator.from_environment(environment())
    assert said.requests is Requests.ALL
    assert said.profile == profile_of(Gumbel())
    assert said.read_secret() == SECRET
    assert "mark.secret" in repr(said)  # a path, never what lies there


def test_an_incomplete_or_wrong_environment_is_refused(environment, tmp_path):
    said = environment()
    for name in ("PROFILE", "SECRET", "TRUST"):
        with pytest.raises(MarkError, match=f"PRIVGUARD_MARK_{name}: not set"):
            Operator.from_environment({**said, f"PRIVGUARD_MARK_{name}": ""})
    with pytest.raises(MarkError, match="all, told, asked"):
        Operator.from_environment({**said, "PRIVGUARD_MARK_REQUESTS": "some"})
    SigningKey.generate().identity.write(tmp_path / "other.pem")
    with pytest.raises(TamperedError):
        Operator.from_environment({**said, "PRIVGUARD_MARK_TRUST": str(tmp_path / "other.pem")})


def test_a_payload_needs_requests_that_may_bring_one(environment):
    said = environment(Payload(bits=8))
    with pytest.raises(MarkError, match="PRIVGUARD_MARK_REQUESTS=told"):
        Operator.from_environment(said)
    told = Operator.from_environment({**said, "PRIVGUARD_MARK_REQUESTS": "told"})
    assert told.order_of(params(extra_args={"privguard": {"message": 5}})) == Order(message=5)
    for bad in (None, {"privguard": {}}, {"privguard": {"message": 256}}, {"privguard": {"message": True}}):
        with pytest.raises(ValueError, match="message"):
            told.order_of(params(extra_args=bad))


@pytest.mark.parametrize(
    ("requests", "said", "order"),
    [
        (Requests.ALL, None, Order()),
        (Requests.TOLD, None, Order()),
        (Requests.TOLD, {"user": "ann"}, Order(user="ann")),
        (Requests.ASKED, None, None),
        (Requests.ASKED, {}, Order()),
        (Requests.ASKED, {"user": "ann"}, Order(user="ann")),
    ],
)
def test_who_decides_about_a_mark(requests, said, order):
    operator = Operator(profile_of(Gumbel()), "mark.secret", requests)
    assert operator.order_of(params(extra_args=None if said is None else {"privguard": said})) == order
    assert operator.order_of(params(extra_args={"other": 1, **({} if said is None else {"privguard": said})})) == order


@pytest.mark.parametrize("said", [{}, {"user": "bob"}, {"mark": False}, False, None])
def test_where_all_are_marked_no_request_has_a_way_around_it(said):
    """Another user's keys would hide a text from the owner's detector, and accuse the other user."""
    operator = Operator(profile_of(Gumbel()), "mark.secret")
    if said is None:
        assert operator.order_of(params(extra_args={"privguard": said})) == Order()
    else:
        with pytest.raises(ValueError, match="no say"):
            operator.order_of(params(extra_args={"privguard": said}))


@pytest.mark.parametrize("said", [7, "ann", {"name": "ann"}, {"user": 7}, {"user": ""}, {"message": 3}])
def test_what_a_trusted_request_says_has_to_make_sense(said):
    operator = Operator(profile_of(Gumbel()), "mark.secret", Requests.TOLD)
    with pytest.raises(ValueError, match="expected"):
        operator.order_of(params(extra_args={"privguard": said}))


def test_greedy_requests_are_refused_where_the_scheme_needs_a_choice():
    for temperature in (0.0, 1e-6):
        with pytest.raises(ValueError, match="greedy"):
            Operator(profile_of(Gumbel()), "mark.secret").order_of(params(temperature=temperature))
        assert Operator(profile_of(GreenList()), "mark.secret").order_of(params(temperature=temperature)) == Order()
        unasked = Operator(profile_of(Gumbel()), "mark.secret", Requests.ASKED)
        assert unasked.order_of(params(temperature=temperature)) is None


def test_the_filters_are_the_requests_own():
    asked = params(temperature=0.5, min_p=0.1, top_k=5, top_p=0.9)
    assert serving.filters_of(asked) == Filters(temperature=0.5, min_p=0.1, top_k=5, top_p=0.9)
    assert serving.filters_of(params(temperature=0.0)) == Filters()


@pytest.mark.parametrize(
    ("changes", "refusal", "reason"),
    [
        ({"speculative_config": object()}, MarkError, "draft"),
        ({"watermark_config": object()}, MarkError, "vLLM's mark"),
        ({"model_config": model(is_diffusion=True)}, MarkError, "diffusion"),
        ({"model_config": model(logprobs_mode="processed_logprobs")}, MarkError, "raw_logprobs"),
        ({"model_config": model(width=500)}, ProfileMismatchError, "logits_width=500"),
    ],
)
def test_an_engine_that_would_not_write_exactly_this_mark_is_refused(changes, refusal, reason):
    serving.refuse_engine(config(), profile_of(Gumbel()))
    with pytest.raises(refusal, match=reason):
        serving.refuse_engine(config(**changes), profile_of(Gumbel()))
    if reason == "raw_logprobs":
        serving.refuse_engine(config(**changes), profile_of(GreenList()))  # its row keeps all tokens


@pytest.fixture
def desk(environment, monkeypatch):
    for name, value in environment(Gumbel()).items():
        monkeypatch.setenv(name, value)
    serving.operator.cache_clear()
    yield serving.desk_for(config(), "cpu")
    serving.operator.cache_clear()


def test_rows_without_a_request_stay_as_they_are(desk):
    logits = torch.zeros(4, 512)
    request = desk.begin([1, 2], [], order=Order(), filters=Filters())
    out = serving.write_rows(desk, logits, [2], [request])
    assert ((out == 0).sum(1) == torch.tensor([512, 512, 1, 512])).all()
    assert serving.write_rows(desk, logits, [], []) is logits


def test_a_running_request_that_cannot_be_marked_is_said_aloud_and_ends_no_engine(desk, caplog):
    assert serving.order_or_warn(params()) == Order()
    assert serving.order_or_warn(params(temperature=0.0)) is None
    assert "without a mark" in caplog.text


def test_engines_of_one_profile_have_chances_of_their_own(desk):
    request = desk.begin([1] * 5, [1], order=Order(), filters=Filters())
    twin = serving.desk_for(config(), "cpu")
    again = twin.begin([1] * 5, [1], order=Order(), filters=Filters())
    draws = [
        [int(d.write(torch.zeros(1, 512), [r]).argmax()) for _ in range(8)] for d, r in ((desk, request), (twin, again))
    ]
    assert draws[0] != draws[1]  # fails once in 512**8 runs


def test_vllm_is_imported_only_by_its_own_modules():
    code = "import sys, privguard, privguard.integrations.vllm.requests; print('vllm' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
@pytest.mark.parametrize("name", ["vllm.runner_v1", "vllm.runner_v2"])
def test_a_missing_vllm_is_a_clear_error(name):
    code = f"import privguard.integrations.{name}"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert said.returncode == 1
    assert "ImportError: vllm: No module named 'vllm'; install vLLM" in said.stderr
