"""Competitors of the GPU benchmarks (gpu_competitors.py) from serving engines: vLLM, SGLang, FlashInfer.

Each function imports its engine, which may fail, and returns a Peer. What arguments mean and their dtypes is the engines' own
convention, as released (vLLM 0.33, SGLang 0.5.23, FlashInfer 0.7); tests/fake_gpu.py has modules that check it.
"""

import importlib
import inspect
from types import SimpleNamespace

import torch
from competitors import scaled
from gpu_competitors import Peer, law_of, one_a_row, probabilities


def renormalised(logits, sampling, module):
    """Probabilities, float32, by a module's fused softmax (torch's, where it has none), top-k and top-p"""
    rows = logits.flatten(0, -2).float()
    if hasattr(module, "softmax"):
        rows = module.softmax(rows, temperature=float(sampling.temperature))
    else:
        rows = (rows / sampling.temperature).softmax(-1)
    if sampling.top_k:
        rows = _named(module, "top_k_renorm_probs", "top_k_renorm_prob")(rows, sampling.top_k)
    if sampling.top_p < 1:
        rows = _named(module, "top_p_renorm_probs", "top_p_renorm_prob")(rows, sampling.top_p)
    if sampling.min_p:  # nobody has it as a renormalisation
        rows = torch.where(rows < sampling.min_p * rows.amax(-1, keepdim=True), 0, rows)
        rows = rows / rows.sum(-1, keepdim=True)
    return rows.view(logits.shape)


def _named(module, *names):
    """The first of these names that the module has: they were renamed."""
    for name in names:
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"{module.__name__} has none of {', '.join(names)}")


# -- vLLM --------------------------------------------------------------------------------------------------------------


def _vllm_scaled(logits, sampling):
    """As its samplers do: a float32 copy over the temperature, its own top-k and top-p, min-p as its logits processor."""
    rows = scaled(logits.flatten(0, 1), sampling._replace(top_k=0, top_p=1.0))
    if sampling.top_k or sampling.top_p < 1:
        from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

        like = {"device": rows.device, "size": (len(rows),)}
        k = torch.full(fill_value=sampling.top_k, dtype=torch.int32, **like) if sampling.top_k else None
        p = torch.full(fill_value=sampling.top_p, dtype=torch.float32, **like) if sampling.top_p < 1 else None
        rows = apply_top_k_top_p(rows, k, p)
    return rows


def vllm_v1(scheme):
    """vllm.v1.sample.rejection_sampler.rejection_sample; the bonus token, which its sampler draws, is drawn in `verify`."""
    function = importlib.import_module("vllm.v1.sample.rejection_sampler").rejection_sample
    from_laws = "target_probs" in inspect.signature(function).parameters  # newer ones take logits

    def prepare(target, tokens, draft, sampling):
        (B, rows, V), device = target.shape, target.device
        scaled = _vllm_scaled(target, sampling).view(B, rows, V)
        settings = SimpleNamespace(
            all_greedy=False, all_random=True, generators={}, top_k=None, top_p=None,
            temperature=torch.full((B,), float(sampling.temperature), device=device),
        )  # fmt: skip
        left = scaled[:, :-1].reshape(-1, V)
        return SimpleNamespace(
            arguments=(tokens.int().flatten(), [rows - 1] * B, rows - 1,
                       (rows - 1) * torch.arange(1, B + 1, dtype=torch.int32, device=device),
                       _vllm_scaled(draft, sampling).softmax(-1), left.softmax(-1) if from_laws else left.contiguous()),
            bonus=scaled[:, -1].softmax(-1), settings=settings,
        )  # fmt: skip

    def verify(made):
        bonus = (made.bonus / torch.empty_like(made.bonus).exponential_()).argmax(-1, keepdim=True).int()
        return function(*made.arguments, bonus, made.settings)

    return Peer(prepare, verify, _padded, note="" if from_laws else "its softmax of the target is in both figures")


def _padded(result, prepared):
    """Tokens padded with −1 -> (tokens, count)"""
    tokens = (result[0] if isinstance(result, tuple) else result).long()
    return tokens, (tokens >= 0).sum(-1) - 1


def vllm_v2(scheme):
    """vllm.v1.worker.gpu.spec_decode.rejection_sampler_utils.rejection_sample, from logits that are scaled already."""
    function = importlib.import_module("vllm.v1.worker.gpu.spec_decode.rejection_sampler_utils").rejection_sample
    more = {"use_block_verification": True} if scheme == "block" else {}

    def prepare(target, tokens, draft, sampling):
        (B, rows, V), device = target.shape, target.device
        plain = law_of(sampling) == 1.0
        request = torch.arange(B, dtype=torch.int32, device=device)
        place = torch.arange(rows, dtype=torch.int32, device=device)
        return {
            "target_logits": target.reshape(-1, V) if plain else _vllm_scaled(target, sampling),
            "draft_logits": draft if plain else _vllm_scaled(draft, sampling).view(draft.shape),
            "draft_sampled": torch.nn.functional.pad(tokens, (1, 0)).int().flatten(),  # the last committed token comes first
            "cu_num_logits": rows * torch.arange(B + 1, dtype=torch.int32, device=device),
            "pos": (100 + place.long()).repeat(B),
            "idx_mapping": request,
            "expanded_idx_mapping": request[:, None].expand(B, rows).flatten(),
            "expanded_local_pos": place.repeat(B),
            "temperature": torch.full((B,), float(sampling.temperature), device=device),
            "seed": 1000 + request.long(),
            "num_speculative_steps": rows - 1,
            **more,
        }

    def read(result, made):
        tokens, emitted = result
        place = torch.arange(tokens.shape[1], device=tokens.device)
        return torch.where(place < emitted[:, None], tokens, -1), emitted.long() - 1

    return Peer(prepare, lambda made: function(**made), read)


# -- SGLang ------------------------------------------------------------------------------------------------------------


def _sglang(function, laws_of, draft_laws):
    """A Peer of a function with the arguments of tree_speculative_sampling_target_only.

    laws_of: (logits, sampling) -> probabilities; draft_laws: (draft logits [B, L, V], sampling, the target's laws) -> likewise
    """

    def prepare(target, tokens, draft, sampling):
        (B, n, _V), device = target.shape, target.device
        laws = laws_of(target, sampling)
        index = torch.arange(B * n, device=device).view(B, n)
        after = torch.arange(1, n + 1, device=device).expand(B, n).contiguous()
        after[:, -1] = -1
        return SimpleNamespace(
            candidates=torch.nn.functional.pad(tokens, (1, 0)), index=index, next=after, sibling=torch.full_like(index, -1),
            target=laws, draft=draft_laws(draft, sampling, laws),
        )  # fmt: skip

    def verify(made):
        (B, n), device = made.candidates.shape, made.candidates.device
        predicts = torch.empty(B * n, dtype=torch.int32, device=device)
        accepted = torch.full((B, n), -1, dtype=torch.int32, device=device)
        count = torch.empty(B, dtype=torch.int32, device=device)
        coins, last = torch.rand(B, n, device=device), torch.rand(B, device=device)
        function(predicts, accepted, count, made.candidates, made.index, made.next, made.sibling, coins, last,
                 made.target, made.draft, 1.0, 1.0, True)  # fmt: skip
        return predicts, accepted, count

    def read(result, made):
        predicts, accepted, count = (x.long() for x in result)
        place = torch.arange(accepted.shape[1], device=accepted.device)
        return torch.where(place <= count[:, None], predicts[accepted.clamp(min=0)], -1), count

    return Peer(prepare, verify, read)


def sglang_triton(scheme):
    """chain_speculative_sampling_triton, and the block-verifying one of its module."""
    try:
        module = importlib.import_module("sglang.kernels.ops.speculative.reject_sampling")
    except ImportError:  # where it was before
        module = importlib.import_module("sglang.srt.speculative.reject_sampling")
    name = "chain_block_speculative_sampling_triton" if scheme == "block" else "chain_speculative_sampling_triton"
    return _sglang(_named(module, name), probabilities, lambda draft, sampling, laws: probabilities(draft, sampling))


def sglang_kernel(scheme):
    """sgl_kernel.tree_speculative_sampling_target_only, on chains: drafts count as deterministic, their laws are zeros."""
    module = importlib.import_module("sgl_kernel")
    peer = _sglang(
        module.tree_speculative_sampling_target_only,
        lambda logits, sampling: renormalised(logits, sampling, module),
        lambda draft, sampling, laws: torch.zeros_like(laws),
    )
    return peer._replace(note="target only: accepts less than `token`")


# -- FlashInfer --------------------------------------------------------------------------------------------------------


def flashinfer(scheme):
    module = importlib.import_module("flashinfer.sampling")

    def state_of(function, device):
        """Tensors, so that a graph can hold it; filled, not copied from the host, which a capture does not allow."""
        seeded = "seed" in inspect.signature(function).parameters
        return {name: torch.full((1,), 7, device=device) for name in (("seed", "offset") if seeded else ())}

    if scheme == "sample":

        def prepare_row(target, tokens, draft, sampling):
            row, plain = target[:, 0], law_of(sampling) == sampling.temperature
            function = module.sampling_from_logits if plain else module.sampling_from_probs
            rows = scaled(row, sampling) if plain else renormalised(row, sampling, module)
            return function, rows, state_of(function, target.device)

        return Peer(prepare_row, lambda made: made[0](made[1], **made[2]), one_a_row)

    def prepare(target, tokens, draft, sampling):
        state = state_of(module.chain_speculative_sampling, target.device)
        return (renormalised(draft, sampling, module), tokens.int(), renormalised(target, sampling, module)), state

    def verify(made):
        arguments, state = made
        return module.chain_speculative_sampling(*arguments, **state)

    return Peer(prepare, verify, _padded)
