"""Objects shaped like those that vLLM's runners pass to the adapter, without vLLM: for the adapter's tests in the ordinary run."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import specsample as ss
from specsample.integrations.vllm import SUPPORTED, v1  # noqa: F401 (SUPPORTED is for the tests)


def params(**given):
    """SamplingParams after vLLM's checks."""
    own = {
        "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": None, "logit_bias": None, "min_tokens": 0,
        "all_stop_token_ids": set(), "structured_outputs": None, "allowed_token_ids": None, "bad_words": None,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0, "thinking_token_budget": None,
    }  # fmt: skip
    assert set(given) <= set(own)
    return SimpleNamespace(**{**own, **given})


@dataclasses.dataclass
class Metadata:
    """SamplingMetadata, as far as the adapter reads it."""

    output_token_ids: list
    spec_token_ids: list
    no_penalties: bool = True
    bad_words_token_ids: dict = dataclasses.field(default_factory=dict)
    allowed_token_ids_mask: Any = None
    prompt_token_ids: Any = None
    frequency_penalties: Any = None
    presence_penalties: Any = None
    repetition_penalties: Any = None
    logitsprocs: Any = dataclasses.field(default_factory=lambda: SimpleNamespace(non_argmax_invariant=[], argmax_invariant=[]))
    thinking_budget_state_holder: Any = None
    max_num_logprobs: int | None = None
    logprob_token_ids: dict | None = None
    all_greedy: bool = False


class Sampler:
    """V1's: its processors are a frequency penalty, bad words and allowed ids, applied to the rows and texts they are given."""

    logprobs_mode = "raw_logprobs"

    def apply_logits_processors(self, logits, metadata, predict_bonus_token):
        assert not predict_bonus_token and logits.dtype == torch.float32
        if metadata.allowed_token_ids_mask is not None:
            logits.masked_fill_(metadata.allowed_token_ids_mask, -torch.inf)
        for row, words in metadata.bad_words_token_ids.items():
            for *before, last in words:
                text = metadata.output_token_ids[row]
                if text[len(text) - len(before) :] == before:
                    logits[row, last] = -torch.inf
        if not metadata.no_penalties:
            assert len(metadata.output_token_ids) == len(logits)
            for row, text in enumerate(metadata.output_token_ids):
                for token in text:
                    logits[row, token] -= metadata.frequency_penalties[row]
        return logits

    def compute_logprobs(self, logits):
        return logits.log_softmax(-1, dtype=torch.float32)

    def gather_logprobs(self, logprobs, count, tokens):
        assert tokens.dtype == torch.int64
        return logprobs.gather(1, tokens[:, None])[:, 0]

    def gather_specific_token_logprobs(self, logprobs, wanted, tokens):
        return {row: logprobs[row, ids] for row, ids in wanted.items()}


class Output(SimpleNamespace):
    """SamplerOutput"""


def runner(names, asked, texts, prompt=5, engine_seed=0, device="cpu", **metadata):
    """V1's GPUModelRunner before a step. asked: params of each request; texts: what each has generated so far (lists of ids)."""
    device = torch.device(device)
    batch = SimpleNamespace(
        req_ids=list(names), sampling_metadata=Metadata([list(t) for t in texts], [[] for _ in names], **metadata),
        generators={}, update_async_output_token_ids=lambda: None, update_async_spec_token_ids=lambda ids: None,
    )  # fmt: skip
    requests = {
        name: SimpleNamespace(sampling_params=own, output_token_ids=list(text), num_prompt_tokens=prompt)
        for name, own, text in zip(names, asked, texts)
    }
    return SimpleNamespace(
        input_batch=batch, requests=requests, device=device, use_async_scheduling=False, _draft_token_req_ids=None,
        _draft_probs=None, _draft_prob_req_ids=None, sampler=Sampler(), num_spec_tokens=3,
        model_config=SimpleNamespace(seed=engine_seed), speculative_config=None,
        seq_lens=torch.tensor([prompt + len(text) for text in texts], dtype=torch.int32, device=device),
    )  # fmt: skip


def with_drafts(one, drafts, laws=None):
    """The runner in a round with `drafts` (lists of ids); laws: what vLLM keeps of them [B, K, V]. -> SpecDecodeMetadata"""
    counts = [len(own) for own in drafts]
    one.input_batch.sampling_metadata.spec_token_ids = [list(own) for own in drafts]
    device = one.device
    one.seq_lens = one.seq_lens + torch.tensor(counts, dtype=torch.int32, device=device)
    if laws is not None:
        one._draft_probs, one._draft_prob_req_ids = laws, list(one.input_batch.req_ids)
    ends = np.cumsum([n + 1 for n in counts]).tolist()
    row = lambda values: torch.tensor(values, dtype=torch.int32, device=device)
    return SimpleNamespace(
        draft_token_ids=row([token for own in drafts for token in own]), num_draft_tokens=counts, max_spec_len=max(counts),
        cu_num_draft_tokens=row(np.cumsum(counts).tolist()), cu_num_sampled_tokens=row(ends),
        target_logits_indices=row([end - n - 1 + i for end, n in zip(ends, counts) for i in range(n)]),
        bonus_logits_indices=row([end - 1 for end in ends]),
    )  # fmt: skip


# --- V2 ----------------------------------------------------------------------------------------------------------------------


class Column(SimpleNamespace):
    """UvaBackedTensor: the host array and the device tensor of one setting, one value per slot."""

    def __init__(self, values, dtype, device):
        host = np.array(values, dtype=dtype)
        super().__init__(np=host, gpu=torch.tensor(host.tolist(), dtype=getattr(torch, np.dtype(dtype).name), device=device))


def sampler_v2(slots, vocab, device="cpu", logprobs_mode="raw_logprobs"):
    """V2's Sampler. slots: params of each slot"""
    states = SimpleNamespace(
        temperature=Column([p.temperature for p in slots], np.float32, device),
        top_k=Column([p.top_k or vocab for p in slots], np.int32, device),
        top_p=Column([p.top_p for p in slots], np.float32, device), min_p=Column([p.min_p for p in slots], np.float32, device),
        seeds=Column([p.seed or 0 for p in slots], np.int64, device), vocab_size=vocab,
    )  # fmt: skip
    return SimpleNamespace(
        sampling_states=states, logprobs_mode=logprobs_mode, return_sampling_mask=False, logits_processors=[], specsample_seed=0,
        thinking_budget_state=SimpleNamespace(apply=lambda logits, context: None),
        specsample_processed=np.zeros(len(slots), dtype=bool), req_states=SimpleNamespace(index_to_req_id={}),
        specsample_asked=None,
    )  # fmt: skip


def rows_v2(slots, drafts, positions, device="cpu"):
    """Arguments of RejectionSampler._verify that assign rows to requests. slots: of each request; positions: of its first row"""
    counts = [len(own) + 1 for own in drafts]
    local = [i for n in counts for i in range(n)]
    own = lambda values: torch.tensor(values, dtype=torch.int32, device=device)
    sampled = own([token for tokens in drafts for token in [7, *tokens]])  # the first row's input is not a draft
    return {
        "draft_sampled": sampled, "verify_draft_sampled": sampled,
        "pos": own([p + i for p, n in zip(positions, counts) for i in range(n)]).long(),
        "cu_num_logits": own([0, *np.cumsum(counts).tolist()]), "idx_mapping": own(slots),
        "idx_mapping_np": np.array(slots, dtype=np.int32), "expanded_local_pos": own(local),
        "expanded_idx_mapping": own([s for s, n in zip(slots, counts) for _ in range(n)]), "seq_lens_upper_bound_np": None,
    }  # fmt: skip


# -- requests of the tests -------------------------------------------------------------------------------------------------

V = 64
MIXED = (
    {"seed": 11, "temperature": 0.7, "top_p": 0.9},
    {"seed": 12, "temperature": 0.0},
    {"seed": 13, "temperature": 1.3, "top_k": 9},
    {"seed": -5, "min_p": 0.05},
)
TEXTS = ([3, 4], [], [9], [1, 2, 3])
PROMPT = 5


def law_of(asked, rows=None):
    """Sampling of a list of params, one value per request (or row)."""
    rows = range(len(asked)) if rows is None else rows
    column = lambda name: torch.tensor([getattr(asked[b], name) for b in rows], dtype=torch.float32).double()  # noqa: E731
    return ss.Sampling(*map(column, ("temperature", "top_k", "top_p", "min_p")))


def names_of(count):
    return [f"{b}-0123abcd" for b in range(count)]


def step(runner, scheme, logits, metadata=None, state=None):
    state = state or v1.State(runner, scheme)
    return v1.sample(runner, state, logits, metadata, Output), state
