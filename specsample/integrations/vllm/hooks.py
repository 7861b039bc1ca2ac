"""Replaces vLLM's functions with ours. All checks come before the first replacement."""

import functools
import importlib
from pathlib import Path

from . import sources, v1, v2
from .v2 import method


def install(scheme):
    import vllm

    version = vllm.__version__.split("+")[0]
    from vllm.triton_utils import HAS_TRITON

    check(Path(vllm.__file__).parent, version)
    module = lambda name: importlib.import_module(f"vllm.{name}")
    # All imports come before it too: if a module is missing, vLLM is left unchanged.
    params, outputs = module("sampling_params"), module("v1.outputs")
    runner, drafter = module("v1.worker.gpu_model_runner"), module("v1.spec_decode.llm_base_proposer")
    if HAS_TRITON:
        sampler, rejection = module("v1.worker.gpu.sample.sampler"), module("v1.worker.gpu.spec_decode.rejection_sampler")
        speculator = module("v1.worker.gpu.spec_decode.speculator")
    # Plugins load before vLLM configures its logging, so each runner logs this when it starts.
    log = module("logger").init_logger("vllm.specsample")
    say = functools.partial(log.info, "specsample (scheme %s, vLLM %s) replaces %s of runner %s", scheme, version)
    # vLLM rejects min_p and logit_bias with speculation; here they work.
    params.SamplingParams._validate_spec_decode = lambda self, speculative_config: None
    _v1(runner, drafter, outputs.SamplerOutput, scheme, say)
    if HAS_TRITON:
        _v2(sampler, rejection, speculator, scheme, say)


def check(package, version):
    """Raise RuntimeError unless the adapter was written against this vLLM."""
    if version not in sources.VERSIONS:
        known = ", ".join(sources.VERSIONS)
        raise RuntimeError(f"specsample knows vLLM {known}, this is {version}: install one of them, or unset SPECSAMPLE_VLLM")
    changed = sources.unknown(package, version)
    if changed:
        raise RuntimeError(f"specsample knows another vLLM {version}: here {'; '.join(changed)} differs. Unset SPECSAMPLE_VLLM")


def refuse_lossy(config):
    """Raise ValueError for speculation settings that change the law or that the adapter does not support."""
    how = getattr(config, "rejection_sample_method", "standard")
    if how in ("synthetic", "fly"):
        raise ValueError(f"rejection_sample_method={how!r} does not keep the target's law. Use another, or unset SPECSAMPLE_VLLM")
    if getattr(config, "enable_adaptive_verification", False):
        raise ValueError("specsample does not know enable_adaptive_verification. Unset one of the two")


def _v1(runner, drafter, output, scheme, say):
    Runner, Drafter = runner.GPUModelRunner, drafter.SpecDecodeBaseProposer
    prepare, own = Runner.initialize_kv_cache, Drafter._sample_from_logits

    @functools.wraps(prepare)
    def initialize_kv_cache(self, *args, **kwargs):
        refuse_lossy(self.speculative_config)
        say("_sample and the drafters' _sample_from_logits", "V1")
        return prepare(self, *args, **kwargs)

    def _sample(self, logits, spec_decode_metadata):
        state = getattr(self, "specsample", None)
        if state is None:
            state = self.specsample = v1.State(self, scheme)
            if self.speculative_config is not None:
                self.drafter.specsample = state  # a drafter has no reference to its runner
        return v1.sample(self, state, logits, spec_decode_metadata, output)

    @functools.wraps(own)
    def _sample_from_logits(self, logits, sampling_metadata):
        state = getattr(self, "specsample", None)
        drawn = self._enable_probabilistic_draft_probs and not sampling_metadata.all_greedy
        if state is None or not drawn:  # a warm-up, or greedy drafts
            return own(self, logits, sampling_metadata)
        return v1.draft(self, state, logits)

    Runner.initialize_kv_cache, Runner._sample, Drafter._sample_from_logits = initialize_kv_cache, _sample, _sample_from_logits


def _v2(sampler, rejection, speculator, scheme, say):
    Sampler, Rejection, Drafter = sampler.Sampler, rejection.RejectionSampler, speculator.DraftModelSpeculator
    make, prepare, draft_make, add = Sampler.__init__, Rejection.__init__, Drafter.__init__, Sampler.add_request

    @functools.wraps(make)
    def sampler_init(self, vllm_config, max_num_reqs, *args, **kwargs):
        make(self, vllm_config, max_num_reqs, *args, **kwargs)
        say("Sampler.sample, RejectionSampler._verify and the drafters' gumbel_sample", "V2")
        v2.init(self, vllm_config, max_num_reqs)

    @functools.wraps(prepare)
    def rejection_init(self, own, spec_config, *args, **kwargs):
        refuse_lossy(spec_config)
        if kwargs.get("watermark_key") is not None:
            raise ValueError("specsample does not know watermarks. Unset SPECSAMPLE_VLLM")
        prepare(self, own, spec_config, *args, **kwargs)

    @functools.wraps(draft_make)
    def drafter_init(self, *args, **kwargs):
        draft_make(self, *args, **kwargs)
        v2.with_spare_slot(self)

    @functools.wraps(add)
    def add_request(self, req_idx, sampling_params):
        add(self, req_idx, sampling_params)
        v2.add_request(self, req_idx, sampling_params)

    Sampler.__init__, Rejection.__init__, Drafter.__init__ = sampler_init, rejection_init, drafter_init
    Sampler.add_request, Sampler.sample = add_request, method(v2.sample, sampler.LogitsContext)
    Rejection._verify = method(v2.verify, sampler.LogitsContext, scheme)
    speculator.gumbel_sample = functools.partial(v2.draw, scheme)
