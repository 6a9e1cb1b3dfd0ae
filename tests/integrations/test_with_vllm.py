# SPDX-License-Identifier: Apache-2.0
"""The processors in vLLM's own samplers and batches; skipped where vLLM is not installed.

``pip install vllm`` brings all that is asked here; no engine is started and no GPU needed.
"""

import itertools
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from privguard.attest.statement import SigningKey
from privguard.errors import MarkError
from privguard.integrations.vllm import requests as serving
from privguard.watermark.secret import Secret
from privguard.watermark.text.profile import Profile
from privguard.watermark.text.reading.detect import Detector
from privguard.watermark.text.reading.ngrams import Documents
from privguard.watermark.text.scheme import GreenList, Gumbel, Tournament
from privguard.watermark.text.writing import host

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from vllm.utils import torch_utils

    if not torch.cuda.is_available():
        torch_utils.PIN_MEMORY = False  # a vLLM built for GPUs takes this for granted
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.sample import logits_processor as v1
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch
    from vllm.v1.sample.sampler import Sampler
    from vllm.v1.worker.gpu.sample import logits_processor as v2
    from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

    from privguard.integrations.vllm.runner_v1 import TextMark as TextMarkV1
    from privguard.integrations.vllm.runner_v2 import TextMark

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.stat]
VOCABULARY, LENGTH, ROWS = 512, 256, 8
SCHEMES = {"gumbel": Gumbel(), "green-list": GreenList(bias=4.0), "tournament": Tournament(depth=12, top_k=64)}
TABLE = torch.from_numpy(np.random.default_rng(5).normal(0, 2, (VOCABULARY, VOCABULARY)).astype(np.float32))


@pytest.fixture
def marked(tmp_path, monkeypatch):
    """``marked(scheme, requests=…, **profile)`` sets up the operator's environment and gives secret and profile."""

    def set_up(scheme, requests="all", **changes):
        secret, key = Secret(bytes(range(32))), SigningKey.generate()
        fields = {"vocabulary": "tiny", "logits_width": VOCABULARY, "subkeys": 4, **changes}
        profile = Profile(scheme=scheme, key_id=secret.key_id, **fields)
        for name, write in (
            ("PROFILE", lambda path: profile.write(path, by=key)),
            ("SECRET", secret.write),
            ("TRUST", key.identity.write),
        ):
            write(tmp_path / name)
            monkeypatch.setenv(f"PRIVGUARD_MARK_{name}", str(tmp_path / name))
        monkeypatch.setenv("PRIVGUARD_MARK_REQUESTS", requests)
        monkeypatch.setattr(serving, "_agreed_entropy", lambda _config: bytes(32))
        torch.manual_seed(3)
        serving.operator.cache_clear()
        return secret, profile

    yield set_up
    serving.operator.cache_clear()


def config(*, rows=ROWS, **changes):
    fields = {
        "model_config": SimpleNamespace(logprobs_mode="raw_logprobs", get_vocab_size=lambda: VOCABULARY),
        "scheduler_config": SimpleNamespace(max_num_seqs=rows),
        "parallel_config": SimpleNamespace(tensor_parallel_size=1),
        "speculative_config": None,
        "watermark_config": None,
        "reasoning_config": None,
    }
    return SimpleNamespace(**{**fields, **changes})


class RunnerV1:
    """vLLM's batch, processors and sampler, with a table in place of a model: the next logits follow the last token."""

    def __init__(self, rows=ROWS):
        cpu = torch.device("cpu")
        processors = v1.build_logitsprocs(config(rows=rows), cpu, False, False, [TextMarkV1])
        self.mark = next(each for each in processors.all if isinstance(each, TextMarkV1))
        self.batch = InputBatch(
            rows,
            LENGTH,
            LENGTH,
            cpu,
            VOCABULARY,
            [16],
            [LENGTH // 16],
            processors,
            logitsprocs_need_output_token_ids=True,
        )
        self.sampler = Sampler()
        self.states = {}

    def add(self, name, prompt, params):
        self.states.setdefault(name, CachedRequestState(name, prompt, [], params, None, ([],), len(prompt), [], None))
        self.batch.add_request(self.states[name])

    def remove(self, name):
        self.batch.remove_request(name)

    def swap(self, one, other):
        self.batch.swap_states(one, other)

    def names(self):
        return list(self.batch.req_ids)

    def text(self, name):
        state = self.states[name]
        return [*state.prompt_token_ids, *state.output_token_ids]

    def pen(self, name):
        request = self.mark._batch.rows.get(self.batch.req_id_to_index[name])
        return request and request.pen

    def step(self):
        self.batch.condense()
        self.batch.refresh_metadata()
        rows = TABLE[[self.text(name)[-1] for name in self.batch.req_ids]].clone()
        tokens = self.sampler(rows, self.batch.sampling_metadata).sampled_token_ids[:, 0].tolist()
        for row, (name, token) in enumerate(zip(self.batch.req_ids, tokens, strict=True)):
            state = self.states[name]
            self.batch.token_ids_cpu[row, len(self.text(name))] = token
            self.batch.num_tokens_no_spec[row] += 1
            state.output_token_ids.append(token)
        return dict(zip(self.batch.req_ids, tokens, strict=True))


class RunnerV2:
    """vLLM's interface of the runner V2 and its order of steps; its own kernels want a GPU, so torch does theirs."""

    def __init__(self, rows=ROWS):
        self.tokens = torch.zeros((rows, LENGTH), dtype=torch.int32)
        self.prompt, self.filled = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
        states = SimpleNamespace(
            device=torch.device("cpu"),
            max_num_reqs=rows,
            vocab_size=VOCABULARY,
            all_token_ids=SimpleNamespace(gpu=self.tokens),
            prompt_len=SimpleNamespace(np=self.prompt),
            prefill_len=SimpleNamespace(np=self.filled),
            total_len=None,
        )
        (self.mark,) = v2.build_custom_logits_processors(config(rows=rows), states, False, [TextMark])
        self.free, self.slots, self.texts, self.params, self.order = list(range(rows)), {}, {}, {}, []
        self.prompts = {}

    def add(self, name, prompt, params):
        text = self.texts.setdefault(name, list(prompt))
        slot = self.slots[name] = self.free.pop()
        self.params[name], self.prompts[name] = params, len(prompt)
        self.prompt[slot], self.filled[slot] = len(prompt), len(text)
        self.tokens[slot, : len(text)] = torch.tensor(text)
        self.mark.add_request(slot, params)
        self.order.append(name)

    def remove(self, name):
        self.free.append(self.slots.pop(name))
        self.order.remove(name)

    def swap(self, one, other):
        self.order[one], self.order[other] = self.order[other], self.order[one]

    def names(self):
        return list(self.order)

    def text(self, name):
        return self.texts[name]

    def pen(self, name):
        request = self.mark._slots.rows.get(self.slots[name])
        return request and request.pen

    def step(self):
        self.mark.apply_staged_writes()
        slots = np.array([self.slots[name] for name in self.order])
        last = torch.tensor([self.texts[name][-1] for name in self.order], dtype=torch.int32)
        at = torch.tensor([len(self.texts[name]) - 1 for name in self.order])
        mapping = torch.from_numpy(slots)
        context = v2.LogitsContext(mapping, mapping, slots, torch.zeros_like(at), last, at, (at + 1).numpy())
        logits = self.mark.apply(TABLE[last.long()].clone(), context)
        tokens = {}
        for row, name in zip(logits, self.order, strict=True):
            tokens[name] = int(torch.multinomial(torch.softmax(removed(row[None], self.params[name])[0], -1), 1))
        for name, token in tokens.items():
            self.tokens[self.slots[name], len(self.texts[name])] = token
            self.texts[name].append(token)
        return tokens


def removed(logits, params):
    """vLLM's own arithmetic for temperature, min-p, top-k and top-p of one request; greedy as a single token left."""
    if params.temperature < 1e-5:
        return torch.full_like(logits, -torch.inf).scatter_(1, logits.argmax(-1, keepdim=True), 0.0)
    out = logits / params.temperature
    chances = torch.softmax(out, -1)
    out = out.masked_fill(chances < chances.amax(-1, keepdim=True) * params.min_p, -torch.inf)
    k = params.top_k if 0 < params.top_k < VOCABULARY else VOCABULARY
    return apply_top_k_top_p_pytorch(out, torch.tensor([k]), torch.tensor([params.top_p]))


def some_params(rng, *, greedy=False):
    return SamplingParams(
        temperature=0.0 if greedy and rng.random() < 0.3 else float(rng.choice([0.6, 1.0, 1.3])),
        top_k=int(rng.choice([-1, 20, 100])),
        top_p=float(rng.choice([1.0, 0.95])),
        min_p=float(rng.choice([0.0, 0.01])),
        max_tokens=LENGTH,
    )


RUNNERS = {"V1": RunnerV1, "V2": RunnerV2}


@pytest.mark.parametrize("runner", RUNNERS.values(), ids=RUNNERS.keys())
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
def test_texts_of_requests_that_come_leave_and_move_carry_the_mark(runner, scheme, marked):
    """Hundreds of steps under fixed chance; the tokens are the host's, and every long text is found."""
    secret, profile = marked(scheme)
    engine, rng = runner(), np.random.default_rng(7)
    fresh, waiting, params, pens, checked = itertools.count(), [], {}, {}, 0
    for _ in range(400):
        for name in engine.names():
            if len(engine.text(name)) > 120 or rng.random() < 0.01:
                engine.remove(name)
                if len(engine.text(name)) <= 120:
                    waiting.append(name)
        for name in list(waiting):
            if len(engine.names()) < ROWS and rng.random() < 0.2:
                waiting.remove(name)
                engine.add(name, engine.text(name)[: prompt_length(engine, name)], params[name])
        if len(engine.names()) < ROWS and rng.random() < 0.3:
            name = f"r{next(fresh)}"
            params[name] = some_params(rng, greedy=isinstance(scheme, GreenList))
            engine.add(name, rng.integers(1, VOCABULARY, int(rng.integers(1, 9))).tolist(), params[name])
        if isinstance(engine, RunnerV1):
            engine.batch.condense()
        if len(engine.names()) > 2 and rng.random() < 0.2:
            engine.swap(0, len(engine.names()) - 1)
        if not engine.names():
            continue
        before = {name: list(engine.text(name)) for name in engine.names()}
        tokens = engine.step()
        for name, token in tokens.items():
            pen = engine.pen(name)
            assert pens.setdefault(name, pen).stream is pen.stream  # one sub-key from first to last token
            checked += expected(scheme, before[name], token, params[name], pen, prompt_length(engine, name))
    assert checked > 500 or isinstance(scheme, Tournament)
    long = [name for name in pens if len(engine.text(name)) - prompt_length(engine, name) > 100]
    assert len(long) > 10
    texts = Documents.of_lists(
        [np.array(engine.text(name)) for name in long], prompts=[prompt_length(engine, name) for name in long]
    )
    assert (Detector(profile, secret).detect(texts).log10_p < -6).all()
    stranger = Secret(bytes(32))
    other = Profile(**{**{f: getattr(profile, f) for f in profile.__dataclass_fields__}, "key_id": stranger.key_id})
    assert (Detector(other, stranger).detect(texts).log10_p > -6).all()


def prompt_length(engine, name):
    if isinstance(engine, RunnerV1):
        return len(engine.states[name].prompt_token_ids)
    return engine.prompts[name]


def expected(scheme, text, token, params, pen, prompt):
    """Whether this token was one to check, after having checked it against the chooser of the host."""
    context = ([(1 << 24) - 1] * 4 + text)[-4:]
    used = [([(1 << 24) - 1] * 4 + text[:i])[-4:] for i in range(prompt, len(text))]
    row = TABLE[text[-1]].clone()
    if isinstance(scheme, GreenList):
        heat = params.temperature if params.temperature >= 1e-5 else 1.0
        raised = (row / heat).numpy().copy()
        host.raise_green(raised, pen.stream, np.array([context]), scheme=scheme)
        left = removed(torch.from_numpy(raised)[None] * heat, params)[0]
        assert left[token] > -torch.inf
        return params.temperature < 1e-5
    left = removed(row[None], params)[0]
    assert left[token] > -torch.inf
    if isinstance(scheme, Tournament) or context in used:
        return False
    assert token == host.PickGumbel()(left.numpy(), pen.stream, np.array([context]), chance=np.zeros(3))
    return True


@pytest.mark.parametrize("runner", RUNNERS.values(), ids=RUNNERS.keys())
@pytest.mark.parametrize("scheme", [Gumbel(), Tournament(depth=12, top_k=16)], ids=lambda scheme: scheme.name)
def test_each_token_is_drawn_with_the_probability_that_vllm_gives_it(runner, scheme, marked):
    """χ² over 15,000 first tokens behind as many prompts that end alike; a right writer fails once in 10⁶ runs."""
    marked(scheme)
    rows, steps, rng = 256, 60, np.random.default_rng(11)
    params = SamplingParams(temperature=0.8, top_k=40, top_p=0.9, min_p=0.01, max_tokens=4)
    engine, counts = runner(rows), np.zeros(VOCABULARY)
    for step in range(steps):
        for row in range(rows):
            engine.add(f"{step}/{row}", [*rng.integers(1, VOCABULARY, 3).tolist(), 7], params)
        for name, token in engine.step().items():
            counts[token] += 1
            engine.remove(name)
    chances = torch.softmax(removed(TABLE[7][None].clone(), params)[0].double(), -1).numpy()
    kept = chances > 0
    assert 10 < kept.sum() < 40
    assert counts[~kept].sum() == 0
    assert stats.chisquare(counts[kept], chances[kept] * counts.sum()).pvalue > 1e-6


@pytest.mark.parametrize("runner", RUNNERS.values(), ids=RUNNERS.keys())
def test_a_repeated_context_is_left_to_chance(runner, marked):
    """A loop that the prompt began and the text went through: the second time its tokens differ between engines."""
    marked(Gumbel(), subkeys=1)
    seen = set()
    for entropy in range(12):
        engine = runner()
        engine.mark._desk._generator.manual_seed(entropy)
        engine.add("a", [9, 9], SamplingParams(max_tokens=LENGTH))
        force(engine, "a", [1, 2, 3, 4, 7, 1, 2, 3, 4])
        seen.add(engine.step()["a"])
    assert len(seen) > 6


def force(engine, name, tokens):
    """Let the engine write these tokens, whatever its sampler chose."""
    for token in tokens:
        engine.step()
        if isinstance(engine, RunnerV1):
            engine.states[name].output_token_ids[-1] = token
        else:
            engine.texts[name][-1] = token


def test_a_request_that_cannot_be_marked_is_answered_with_the_reason(marked):
    marked(Gumbel())
    validators = (
        lambda params: v1.validate_logits_processors_parameters([TextMarkV1], params),
        lambda params: v2.build_custom_logits_processors_params_validator([TextMark])(params),
    )
    for validate in validators:
        validate(SamplingParams())
        for options, reason in (
            ({"temperature": 0.0}, "greedy"),
            ({"extra_args": {"privguard": {"user": "ann"}}}, "no say"),
        ):
            with pytest.raises(VLLMValidationError, match=reason):
                validate(SamplingParams(**options))


def test_requests_without_a_mark_are_left_as_they_are(marked):
    marked(Gumbel(), requests="asked")
    for runner in RUNNERS.values():
        engine = runner()
        engine.add("plain", [5], SamplingParams(temperature=0.0, max_tokens=9))
        engine.add("marked", [6], SamplingParams(max_tokens=9, extra_args={"privguard": {}}))
        assert engine.pen("plain") is None
        assert engine.step()["plain"] == int(TABLE[5].argmax())
        assert engine.pen("marked") is not None


def test_samples_of_one_prompt_get_different_subkeys(marked):
    marked(Gumbel(), subkeys=4)
    for runner in RUNNERS.values():
        engine = runner()
        for name in "abcd":
            engine.add(name, [5, 6, 7, 8], SamplingParams(max_tokens=9))
        engine.step()
        assert len({id(engine.pen(name).stream) for name in "abcd"}) == 4


def test_a_placeholder_in_place_of_a_token_stops_the_engine_before_it_is_hashed(marked):
    marked(Gumbel())
    engine = RunnerV1()
    engine.add("a", [5, 6], SamplingParams(max_tokens=9))
    engine.step()
    engine.states["a"].output_token_ids[-1] = -1
    engine.batch.refresh_metadata()
    with pytest.raises(MarkError, match="logits_processors"):
        engine.mark.apply(TABLE[:1].clone())


def test_a_row_in_the_middle_of_a_prompt_is_left(marked):
    """The runner V2 samples there too and throws the token away: it must not become part of the text."""
    marked(Gumbel())
    engine = RunnerV2()
    engine.add("a", [5, 6, 7, 8], SamplingParams(max_tokens=9))
    engine.mark.apply_staged_writes()
    slots, logits = np.array([engine.slots["a"]]), TABLE[[6]].clone()
    slot, at = torch.from_numpy(slots), torch.tensor([1])
    context = v2.LogitsContext(slot, slot, slots, torch.zeros_like(at), torch.tensor([6]), at, np.array([2]))
    assert torch.equal(engine.mark.apply(logits, context), TABLE[[6]])
    pen = engine.pen("a")
    token = host.PickGumbel()(TABLE[8].numpy(), pen.stream, np.array([[5, 6, 7, 8]]), chance=np.zeros(3))
    assert engine.step() == {"a": token}


def test_vllm_loads_each_class_for_its_own_runner_only(marked):
    """Why no entry point is registered: the runner that a plug-in was not written for refuses to start with it."""
    marked(Gumbel())
    with pytest.raises(ValueError, match="not a subclass"):
        v2.build_custom_logits_processors_params_validator(["privguard.integrations.vllm.runner_v1:TextMark"])
    with pytest.raises(ValueError, match="must be a subclass"):
        v1.validate_logits_processors_parameters(["privguard.integrations.vllm.runner_v2:TextMark"], SamplingParams())
    v1.validate_logits_processors_parameters(["privguard.integrations.vllm.runner_v1:TextMark"], SamplingParams())
