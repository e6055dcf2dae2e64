"""How often training would make a GPU wait for the host, counted on CPU tensors, and on tensors of
a GPU that is not there where torch was built for one."""

import collections
import contextlib
import dataclasses
import traceback
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

import dfpo.rollout.policy
from dfpo.config import ALGORITHMS, build_config
from dfpo.config.noise import Noise
from dfpo.config.rules import only_read
from dfpo.method.critics import build_critic, estimate_values
from dfpo.method.targets import compute_targets
from dfpo.method.update import update
from dfpo.rewards.functions import Reward
from dfpo.rollout import logprobs
from dfpo.rollout.collect import collect
from dfpo.rollout.policy import SHIPPED_POLICY, Samples, load_policy, token_logprobs
from dfpo.rollout.sampler import Sampler
from dfpo.rollout.tokens import decode
from dfpo.run.setup import set_up
from dfpo.tasks import reward
from dfpo.tasks.source import training_rows
from dfpo_kernels.nn import ValueFlowHead

OWN = {"dfpo", "dfpo_kernels"}


def asker():
    """The file of this project that asks, and the function of transformers where that asks for it;
    None for the optimiser, whose step counters lie on the CPU anyway."""
    frames = [(Path(frame.filename), frame.name) for frame in traceback.extract_stack()]
    if any("optim" in path.parts for path, _ in frames[-8:]):
        return None
    own = max(i for i, (path, _) in enumerate(frames) if OWN & set(path.parts[-4:-1]))
    theirs = [name for path, name in frames[own:] if "transformers" in path.parts]
    return " ".join([frames[own][0].name, *theirs[-1:]])


class _Values(TorchDispatchMode):
    """Reads of one value by the host, and sizes that depend on values."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        aten = torch.ops.aten
        chosen = op is aten.index.Tensor and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if chosen or op in (aten._local_scalar_dense.default, aten.nonzero.default):
            self.found[asker()] += 1
        return op(*args, **(kwargs or {}))


class _Copies(TorchFunctionMode):
    """Copies of whole tensors to the host, and of the host's numbers to the device, of which no
    operation on CPU tensors tells."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        out = function in (torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy)
        into = function is torch.tensor and kwargs.get("device") is not None and result.numel()
        if out or into:
            self.found[asker()] += 1
        return result


@contextlib.contextmanager
def waits():
    found = collections.Counter()
    with _Values(found), _Copies(found):
        yield found
    found.pop(None, None)


SMALL = {
    "rollout.prompts": 3, "rollout.samples": 2, "critic.num_quantiles": 8, "eval.prompts": 0,
    "reward.low": 0, "reward.high": 1, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def parts():
    config = build_config(SMALL)
    policy, tokenizer = load_policy(SHIPPED_POLICY)
    critic = build_critic(policy, config)
    verifier = Reward(("verifier",), (reward,), (1.0,))
    rows = training_rows(0, 0, 3)
    sampler = Sampler.of(policy, tokenizer)
    rollout = collect(sampler, sampler, rows, reward=verifier, noise=Noise(), config=config, step=0)
    estimate = estimate_values(critic, rollout.samples, torch.Generator().manual_seed(0))
    return tokenizer, policy, critic, rollout, compute_targets(rollout, estimate, config, 0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_update_waits_for_the_device_no_more_often_than_is_known(tmp_path, parts, algorithm):
    """Of any algorithm, from the rollout on."""
    own = {"algorithm": algorithm, "runs_dir": str(tmp_path)}
    setup = set_up(build_config(only_read(SMALL, own) | own), None)
    rollout = parts[3]
    with waits() as found:
        estimate = estimate_values(setup.critic, rollout.samples, setup.generator)
    assert not found
    with waits() as found:
        setup.space.tell(rollout)
        targets = compute_targets(setup.space.mapped(rollout), estimate, setup.config, 0)
        setup.space.readout(estimate, rollout.answers.rows)
    assert not found
    for looked_at in (rollout, dataclasses.replace(rollout, old_logprobs=None, entropy=None)):
        with waits() as found:
            update(setup.learner, looked_at, targets, setup.config, 0, train_policy=True)
        # All metrics leave at once; the shuffled order never was on the device.
        assert found == {"update.py": 2}


def test_the_value_flow_loss_waits_for_nothing_where_the_number_of_tokens_is_known(parts):
    *_, critic, rollout, targets = parts
    mask = rollout.samples.mask
    hidden, tokens = critic.hidden(rollout.samples)[:, :-1], int(mask.sum())
    with waits() as found:
        loss, _ = critic.head.loss(hidden, targets.critic.quantiles, mask, most_tokens=tokens)
        loss.backward()
    assert not found and loss.isfinite()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_forward_pass_waits_for_nothing(parts, monkeypatch, attention):
    """Logits at once or in parts, with and without padding, forward and backward."""
    policy, _ = load_policy(SHIPPED_POLICY, attention)
    padded = parts[3].samples
    full = dataclasses.replace(
        padded, attention_mask=torch.ones_like(padded.attention_mask)
    )  # fmt: skip
    assert not padded.attention_mask.all() and dfpo.rollout.policy._head_is_last(policy)
    for samples in (padded, full):
        for at_once in (logprobs.LOGITS_AT_ONCE, 75 * 10):
            with monkeypatch.context() as patch, waits() as found:
                patch.setattr(logprobs, "LOGITS_AT_ONCE", at_once)
                token_logprobs(policy, samples, 1.0)[0].sum().backward()
            assert not found


def test_sampling_waits_once_a_token(parts):
    """Whether all answers have ended decides whether another token is sampled. The rest are
    questions of transformers about one call: special tokens and padding side, then whether the
    prompts are padded at all."""
    tokenizer, policy, *_ = parts
    prompts = [row["prompt"] for row in training_rows(0, 0, 3)]
    with waits() as found:
        samples = Sampler.of(policy, tokenizer).answer(prompts, 12)
    length = samples.mask.shape[1]
    assert found == {
        "hf_generate.py __call__": length,
        "hf_generate.py _prepare_special_tokens": 2,
        "hf_generate.py generate": 2,
        "hf_generate.py _tensor_or_none": 2,
        "hf_generate.py _get_logits_processor": 1,
        # Which tokens end an answer, for the mask, and how long each answer is.
        "sampler.py": 2,
    }
    with waits() as found:
        decode(tokenizer, samples)
    # Tokens; lengths are known.
    assert found == {"tokens.py": 1}


@pytest.mark.skipif(
    not torch.backends.cuda.is_built(), reason="torch was built without CUDA, also for fake tensors"
)
def test_forward_passes_on_a_gpu_that_is_not_there():
    """Fake tensors have no values: whatever reads one raises. Backward wants a device."""
    model_config = AutoConfig.from_pretrained(SHIPPED_POLICY)
    with FakeTensorMode(), torch.device("cuda"):
        policy = AutoModelForCausalLM.from_config(model_config, attn_implementation="sdpa")
        ids, mask = torch.zeros(2, 9, dtype=torch.int64), torch.ones(2, 4, dtype=torch.bool)
        samples = Samples(
            input_ids=ids, attention_mask=torch.ones_like(ids), mask=mask, truncated=mask[:, 0]
        )
        chosen, entropy = token_logprobs(policy, samples, 1.0)
        assert chosen.device.type == "cuda" and chosen.shape == entropy.shape == (2, 4)
        head = ValueFlowHead(8, 16, return_range=(0.0, 1.0))
        inputs = torch.randn(2, 4, 8), torch.rand(2, 4, 16), mask
        loss, _ = head.loss(*inputs, most_tokens=7)
        assert loss.device.type == "cuda"
        with pytest.raises(DynamicOutputShapeException):
            head.loss(*inputs)
