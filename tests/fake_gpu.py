"""Stand-ins for what the GPU benchmarks need and this machine lacks: torch.cuda with its own clock, and the serving engines.

The engines' functions have their signatures and say which shapes and dtypes they expect; what they return is computed by the
torch implementations of benchmarks/competitors.py.
"""

import contextlib
import sys
from types import ModuleType, SimpleNamespace

import torch


class Cuda:
    """Like torch.cuda. Work is what calls `spend`: it takes its time at once, or, while a graph is captured, at each replay"""

    TICK = 1e-7  # seconds between two events with nothing between them

    def __init__(self):
        self.now, self.graph_in_capture, self.peak, self.allocated, self.captured = 0.0, None, 0, 0, 0

    def spend(self, seconds, waits=False):
        if self.graph_in_capture is None:
            self.now += seconds
        elif waits:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore about it")
        else:
            self.graph_in_capture.seconds += seconds

    def clock(self):
        self.now += self.TICK
        return self.now

    def get_device_properties(self, index):
        return SimpleNamespace(L2_cache_size=1 << 13, multi_processor_count=4)

    def mem_get_info(self):
        return 1 << 30, 1 << 31

    def memory_allocated(self):
        return self.allocated

    def max_memory_allocated(self):
        return self.peak

    def reset_peak_memory_stats(self):
        self.peak = self.allocated

    def take(self, size):
        """A call that allocates `size` bytes for a while"""
        self.peak = max(self.peak, self.allocated + size)

    def Event(self, enable_timing):  # noqa: N802
        assert enable_timing
        event = SimpleNamespace(synchronize=lambda: None)
        event.record = lambda: setattr(event, "at", self.clock())
        event.elapsed_time = lambda end: 1e3 * (end.at - event.at)
        return event

    def CUDAGraph(self):  # noqa: N802
        graph = SimpleNamespace(seconds=0.0)
        graph.replay = lambda: self.spend(graph.seconds)
        return graph

    @contextlib.contextmanager
    def graph(self, graph):
        assert self.graph_in_capture is None
        self.graph_in_capture, self.captured = graph, self.captured + 1
        try:
            yield
        finally:
            self.graph_in_capture = None

    def Stream(self):  # noqa: N802
        return SimpleNamespace(wait_stream=lambda other: None)

    current_stream = Stream

    @contextlib.contextmanager
    def stream(self, stream):
        yield

    def synchronize(self):
        assert self.graph_in_capture is None, "a synchronisation while a graph is captured"

    empty_cache = staticmethod(lambda: None)
    is_available = staticmethod(lambda: True)
    get_device_name = staticmethod(lambda: "Fake GPU 1")
    get_device_capability = staticmethod(lambda: (9, 0))


def fake_torch():
    return SimpleNamespace(__version__="0.0", version=SimpleNamespace(cuda="13.0"), cuda=Cuda())


# -- engines -----------------------------------------------------------------------------------------------------------


def expect(tensor, dtype, *shape):
    assert isinstance(tensor, torch.Tensor) and tensor.dtype == dtype and tuple(tensor.shape) == shape, (
        f"expected {dtype} {shape}, got {getattr(tensor, 'dtype', tensor)} {tuple(getattr(tensor, 'shape', ()))}"
    )


def laws(tensor, *shape):
    expect(tensor, torch.float32, *shape)
    assert tensor.is_contiguous() and torch.allclose(tensor.sum(-1), torch.ones(()), atol=1e-4)


def engines(monkeypatch, others, wrong=()):
    """Puts them into sys.modules. others: the module benchmarks/competitors.py; wrong: functions that emit a wrong law"""

    def emitted(name, target, tokens, draft, scheme="token"):
        if name in wrong:
            target = target.square() / target.square().sum(-1, keepdim=True)
        return others.OF_LAWS[scheme](target, tokens.long(), draft)

    def chain_speculative_sampling(
        draft_probs, draft_token_ids, target_probs, maybe_output_accepted_token_num=None,
        maybe_output_emitted_draft_token_num=None, deterministic=True, generator=None, seed=None, offset=None,
    ):  # fmt: skip
        (B, K, V) = draft_probs.shape
        laws(draft_probs, B, K, V)
        laws(target_probs, B, K + 1, V)
        expect(draft_token_ids, torch.int32, B, K)
        expect(seed, torch.int64, 1)
        expect(offset, torch.int64, 1)
        tokens, count = emitted("flashinfer", target_probs, draft_token_ids, draft_probs)
        return tokens.int(), count.int(), count.int()

    def sampling_from_logits(logits, indices=None, deterministic=True, generator=None, check_nan=False, seed=None, offset=None):
        expect(logits, torch.float32, *logits.shape)
        return sampling_from_probs(logits.softmax(-1), indices, deterministic, generator, check_nan, seed, offset)

    def sampling_from_probs(probs, indices=None, deterministic=True, generator=None, check_nan=False, seed=None, offset=None):
        laws(probs, *probs.shape)
        expect(seed, torch.int64, 1)
        expect(offset, torch.int64, 1)
        return others.draw(probs)[:, 0].int()

    def softmax(logits, temperature=None, enable_pdl=None):
        assert logits.dim() == 2 and logits.dtype == torch.float32
        return (logits / temperature).softmax(-1)

    def top_k_renorm_probs(probs, top_k):
        laws(probs, *probs.shape)
        kept = probs * (probs >= probs.topk(top_k).values[:, -1:])
        return kept / kept.sum(-1, keepdim=True)

    def top_p_renorm_probs(probs, top_p):
        laws(probs, *probs.shape)
        ordered, order = probs.sort(descending=True)
        kept = torch.zeros_like(probs).scatter(1, order, ordered * (ordered.cumsum(-1) - ordered < top_p))
        return kept / kept.sum(-1, keepdim=True)

    def rejection_sample_v1(
        draft_token_ids, num_draft_tokens, max_spec_len, cu_num_draft_tokens, draft_probs, target_logits, bonus_token_ids,
        sampling_metadata, synthetic_mode=False, synthetic_conditional_rates=None,
    ):  # fmt: skip
        B, L, V = len(num_draft_tokens), max_spec_len, target_logits.shape[-1]
        assert num_draft_tokens == [L] * B and sampling_metadata.all_random and not sampling_metadata.all_greedy
        assert sampling_metadata.generators == {}
        expect(sampling_metadata.temperature, torch.float32, B)
        expect(draft_token_ids, torch.int32, B * L)
        expect(cu_num_draft_tokens, torch.int32, B)
        assert cu_num_draft_tokens.tolist() == [L * (i + 1) for i in range(B)]  # without a leading zero
        laws(draft_probs, B * L, V)
        expect(target_logits, torch.float32, B * L, V)
        expect(bonus_token_ids, torch.int32, B, 1)
        assert target_logits.is_contiguous()
        target = torch.nn.functional.pad(target_logits.softmax(-1).view(B, L, V), (0, 0, 0, 1), value=1 / V)
        tokens, count = emitted("vllm v1", target, draft_token_ids.view(B, L), draft_probs.view(B, L, V))
        tokens[:, -1] = torch.where(count == L, bonus_token_ids[:, 0].long(), tokens[:, -1])
        return tokens.int()

    def rejection_sample_v2(
        target_logits, draft_logits, draft_sampled, cu_num_logits, pos, idx_mapping, expanded_idx_mapping, expanded_local_pos,
        temperature, seed, num_speculative_steps, synthetic_conditional_rates=None, use_fp64=False, use_block_verification=False,
    ):  # fmt: skip
        B, L, V = draft_logits.shape
        assert num_speculative_steps == L and target_logits.shape == (B * (L + 1), V)
        assert target_logits.dtype == draft_logits.dtype and target_logits.dtype in (torch.float32, torch.bfloat16)
        expect(draft_sampled, torch.int32, B * (L + 1))
        expect(cu_num_logits, torch.int32, B + 1)
        assert cu_num_logits[0] == 0 and cu_num_logits[-1] == B * (L + 1)
        expect(pos, torch.int64, B * (L + 1))
        for index in (idx_mapping, expanded_idx_mapping, expanded_local_pos):
            assert index.dtype == torch.int32
        assert expanded_idx_mapping.view(B, -1)[:, 0].tolist() == idx_mapping.tolist() == list(range(B))
        assert expanded_local_pos.view(B, -1)[0].tolist() == list(range(L + 1))
        expect(temperature, torch.float32, B)
        expect(seed, torch.int64, B)
        target = target_logits.float().softmax(-1).view(B, L + 1, V)
        scheme = "block" if use_block_verification else "token"
        drafts = draft_sampled.view(B, L + 1)[:, 1:]  # the first of a request is its last committed token
        tokens, count = emitted("vllm v2", target, drafts, draft_logits.float().softmax(-1), scheme)
        tokens = torch.where(tokens < 0, 12345, tokens)  # what follows the last one is not written
        return tokens, (count + 1).int()

    def apply_top_k_top_p(logits, k, p):
        for x, dtype in ((k, torch.int32), (p, torch.float32)):
            assert x is None or (x.dtype == dtype and x.shape == logits.shape[:1])
        settings = [None if x is None else x[0].item() for x in (k, p)]
        return others.scaled(logits, others.ss.Sampling(1.0, settings[0] or 0, settings[1] or 1.0))

    def tree(name, scheme="token", draft_rows=0):
        def function(
            predicts, accept_index, accept_token_num, candidates, retrive_index, retrive_next_token, retrive_next_sibling,
            uniform_samples, uniform_samples_for_final_sampling, target_probs, draft_probs, threshold_single=1.0,
            threshold_acc=1.0, deterministic=True,
        ):  # fmt: skip
            B, n, V = target_probs.shape
            laws(target_probs, B, n, V)
            expect(draft_probs, torch.float32, B, n + draft_rows, V)
            expect(predicts, torch.int32, B * n)
            expect(accept_index, torch.int32, B, n)
            expect(accept_token_num, torch.int32, B)
            for index in (candidates, retrive_index, retrive_next_token, retrive_next_sibling):
                expect(index, torch.int64, B, n)
            assert retrive_index.flatten().tolist() == list(range(B * n)) and (retrive_next_sibling == -1).all()
            assert retrive_next_token[0].tolist() == [*range(1, n), -1]
            expect(uniform_samples, torch.float32, B, n)
            expect(uniform_samples_for_final_sampling, torch.float32, B)
            assert (threshold_single, threshold_acc) == (1.0, 1.0)
            drafts = candidates[:, 1:]
            draft = draft_probs if draft_rows else torch.nn.functional.one_hot(drafts, V).float()
            assert draft_rows or not draft_probs.any()
            tokens, count = emitted(name, target_probs, drafts, draft, scheme)
            accept_token_num.copy_(count)
            place = torch.arange(n)
            accept_index.copy_(torch.where(place <= count[:, None], retrive_index, -1))
            predicts.copy_(torch.where(tokens < 0, 0, tokens).flatten())

        return function

    def module(name, **functions):
        found = ModuleType(name)
        vars(found).update(functions)
        monkeypatch.setitem(sys.modules, name, found)
        parent, _, child = name.rpartition(".")
        if parent:
            if parent not in sys.modules or not hasattr(sys.modules[parent], "__fake__"):
                module(parent, __path__=[], __fake__=True)
            setattr(sys.modules[parent], child, found)

    module("flashinfer.sampling", chain_speculative_sampling=chain_speculative_sampling, softmax=softmax,
           sampling_from_logits=sampling_from_logits, sampling_from_probs=sampling_from_probs,
           top_k_renorm_probs=top_k_renorm_probs, top_p_renorm_probs=top_p_renorm_probs)  # fmt: skip
    module("vllm.v1.sample.rejection_sampler", rejection_sample=rejection_sample_v1)
    module("vllm.v1.sample.ops.topk_topp_sampler", apply_top_k_top_p=apply_top_k_top_p)
    module("vllm.v1.worker.gpu.spec_decode.rejection_sampler_utils", rejection_sample=rejection_sample_v2)
    module("sglang.srt.speculative.reject_sampling", chain_speculative_sampling_triton=tree("sglang", draft_rows=-1),
           chain_block_speculative_sampling_triton=tree("sglang", "block", draft_rows=-1))  # fmt: skip
    module("sgl_kernel", tree_speculative_sampling_target_only=tree("sgl_kernel"), top_k_renorm_prob=top_k_renorm_probs,
           top_p_renorm_prob=top_p_renorm_probs)  # fmt: skip
