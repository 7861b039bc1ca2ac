"""Every causal-LM class of the installed transformers as a tiny random model: is it decoded exactly, or refused with a reason?

    make check-models                     # all of them, minutes; writes docs/models.md
    python tests/support/model_classes.py Gpt     # those whose names contain one of the words, to the screen only

A class passes if, in float64, for a batch of unequal prompts and for single requests,
- greedy text equals that of transformers' own `generate`, request by request;
- with chains, paths and trees of drafts, from a noisy copy of the model and by look-up, the text under `race` (greedy and sampled
  requests in one batch), and the greedy text under `token`, equal those of `draft=None`; trees in each way the model takes them;
or if `ss.generate` refuses it, as target and as draft, with a ValueError that names the argument, before anything is emitted.
Windows, if a class has them, are shorter than the texts.
"""

import copy
import dataclasses
import os
import pathlib
import re
import sys
import time
import warnings
from typing import NamedTuple

import torch
from models import prompts

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")

VOCAB, NEW = 61, 9
LENGTHS = [6, 2, 4]
TEMPERATURES = [0.0, 0.9, 0.0]
BUSHY = [-1, 0, 0, -1, 3, 1, 1, 3, -1]
SHAPES = {"chain": {"depth": 3}, "paths": {"paths": 3, "depth": 3}, "tree": {"tree": BUSHY}}

_SIZES = {  # of config fields, in whatever class
    61: "vocab_size vocab_size_per_layer_input text_vocab_size",
    32: "hidden_size d_model n_embd dim n_embed embedding_size dim_model word_embed_proj_dim hidden_size_per_layer_input_",
    40: "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner dim_ff ffn_hidden_size dff moe_intermediate_size "
    "shared_expert_intermediate_size feed_forward_size expert_ffn_hidden_size moe_shared_expert_intermediate_size "
    "mlp_hidden_size intermediate_size_mlp dense_intermediate_size block_ff_dim shared_intermediate_size num_decoder_ffn",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers num_encoder_layers "
    "num_key_value_heads num_kv_heads num_experts_per_tok num_experts_per_token moe_k moe_top_k top_k moe_topk depth",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads rotary_dim "
    "num_decoder_attention_heads num_encoder_attention_heads qk_rope_head_dim num_experts num_local_experts "
    "n_routed_experts moe_num_experts index_n_heads",
    8: "head_dim kv_channels dim_head v_head_dim qk_nope_head_dim attention_head_dim head_size global_head_dim kv_lora_rank "
    "q_lora_rank o_lora_rank index_head_dim hidden_size_per_layer_input laurel_rank",
    1: "first_k_dense_replace n_group topk_group num_nextn_predict_layers n_shared_experts",
    0: "num_kv_shared_layers pad_token_id",
    64: "max_position_embeddings n_positions n_ctx max_sequence_length max_seq_len max_target_positions",
    5: "sliding_window window_size attention_chunk_size attention_window_size sliding_window_size local_attention",
    None: "bos_token_id eos_token_id decoder_start_token_id",
}
TINY = {name: size for size, names in _SIZES.items() for name in names.split()}
_DROPOUT = ("dropout", "drop", "pdrop", "layerdrop", "dropout_prob", "probs_dropout_prob")


def classes():
    """{name: class} of all causal language models that the installed transformers knows, in its order"""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as names

    return {name: getattr(transformers, name) for name in names.values() if hasattr(transformers, name)}


def tiny_config(kind, depth=0, **more):
    """A config of class `kind` with the sizes above, in all fields of these names, including those of sub-configs."""
    fields = {field.name for field in dataclasses.fields(kind)}
    given = {name: size for name, size in TINY.items() if name in fields}
    if "is_decoder" in fields:
        given["is_decoder"] = True
    given |= {name: 0.0 for name in fields if name.endswith(_DROPOUT)}
    if "kv_lora_rank" in fields and "num_key_value_heads" in fields:
        given["num_key_value_heads"] = given["num_attention_heads"]
    if "tie_word_embeddings" in fields:
        given["tie_word_embeddings"] = False
    for name, part in (getattr(kind, "sub_configs", None) or {}).items():
        if depth < 3 and name in fields:
            part = part if dataclasses.is_dataclass(part) else type(getattr(kind(), name))
            if dataclasses.is_dataclass(part):
                given[name] = tiny_config(part, depth + 1, **more.pop(name, {}))
    for extra in ({"layer_types": ["sliding_attention", "full_attention"]}, {}):
        if extra and ("layer_types" not in fields or "sliding_attention" not in (kind().layer_types or ())):
            continue
        for _ in range(9):
            try:
                return kind(**given | extra | more)
            except Exception as error:  # a field that rejects the value keeps its default
                last, named = error, re.search("field '(\\w+)'", str(error))
                if named is None or given.pop(named[1], "") == "":
                    break
    raise last


# What a class needs besides the sizes above.
OVERRIDES = {
    "BambaForCausalLM": {"mamba_n_heads": 4, "mamba_d_head": 16},
    "BltForCausalLM": {"encoder_hash_byte_group_vocab": 50},
    "CohereCompassForCausalLM": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "DbrxForCausalLM": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 40, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 1]]},
    "GraniteMoeHybridForCausalLM": {"mamba_n_heads": 4, "mamba_d_head": 16},
    "Lfm2ForCausalLM": {"layer_types": ["conv", "full_attention"]},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention"]},
    "ReformerModelWithLMHead": {"axial_pos_embds": False},
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 8},
    "RoCBertForCausalLM": {"shape_vocab_size": VOCAB, "pronunciation_vocab_size": VOCAB},
    "XLMWithLMHeadModel": {"emb_dim": 32},
    "ZambaForCausalLM": {"layer_types": ["linear_attention", "hybrid"]},
    "Zamba2ForCausalLM": {"layer_types": ["linear_attention", "hybrid"]},
    "ZayaForCausalLM": {"num_experts_per_tok": 1},
}
_LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [1.5, 2.0, 3.0, 4.0]}
LONGROPE = {
    "original_max_position_embeddings": 11,
    "rope_parameters": _LONG | {"original_max_position_embeddings": 11, "factor": 8.0},
}
DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}
WINDOWED = {"use_sliding_window": True, "max_window_layers": 0, "layer_types": ["sliding_attention", "full_attention"]}
# Variants of classes: the class, settings of the config
VARIANTS = {
    "BertLMHeadModel, not a decoder": {"is_decoder": False},
    "FalconForCausalLM, alibi": {"alibi": True, "new_decoder_architecture": False},
    "LlamaForCausalLM, dynamic rotary": DYNAMIC,
    "LlamaForCausalLM, dynamic rotary, text beyond its limit": DYNAMIC | {"max_position_embeddings": 12},
    "Phi3ForCausalLM, longrope": LONGROPE,
    "Qwen2ForCausalLM, windows": WINDOWED,
}


def build(name, seed=0):
    """A random float64 model whose texts differ from prompt to prompt. name: of a class, or of a variant

    If a float64 model rounds its softmax to float32, masks overflow and padding breaks its batch; then it is built in float32."""
    import transformers

    from specsample.decoding.models import abilities

    torch.manual_seed(seed)
    cls = getattr(transformers, name.split(",")[0])
    more = VARIANTS.get(name) or OVERRIDES.get(name, {})
    config = tiny_config(cls.config_class, **copy.deepcopy(more))
    config._experts_implementation = "eager"
    with torch.device("meta"):
        size = sum(p.numel() for p in cls(config).parameters())
    if size > 8_000_000:
        raise MemoryError(f"{size:,} parameters in the smallest config that was found")
    model = cls(config).double().eval()
    for p in model.parameters():
        if p.dim() >= 2:
            p.data = torch.randn_like(p) * (1.5 / p.shape[-1] ** 0.5)
    model.generation_config = transformers.GenerationConfig(pad_token_id=0)  # no forced tokens, no eos
    try:
        if not abilities(model).batched and abilities(model.float()).batched:
            return model
    except ValueError:
        pass
    return model.double()


def noisy(model, seed=1):
    """A copy that often, but not always, agrees with `model`."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for p in other.parameters():
        if p.dim() >= 2:
            p.data += 0.04 * p.data.std() * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
    return other


class Finding(NamedTuple):
    """how    "masks": trees in one forward, "paths": a row of a batch each, "alone": the same, and requests one by one; "refused"
    wrong   list of what differed
    reason  of a refusal, or what else there is to say
    """

    how: str
    wrong: list
    reason: str = ""


def try_model(model):
    """-> `Finding`"""
    import specsample as ss
    from specsample.decoding import models, tree_cache

    ids, mask = prompts(LENGTHS, vocab=VOCAB - 1, seed=5)
    ids = ids + mask  # no pad ids within the text
    width, wrong, accepted, note = ids.shape[1], [], 0, ""
    settings = {"max_new_tokens": NEW, "eos_token_id": []}
    batch = settings | {"attention_mask": mask, "seed": 3, "sampling": ss.Sampling(torch.tensor(TEMPERATURES).double())}

    def compare(what, output, expected):
        if output.shape != expected.shape or not torch.equal(output, expected):
            wrong.append(what)

    try:
        plain = ss.generate(model, None, ids, **batch)
    except ValueError as refusal:
        return _refused(model, str(refusal), settings)
    draft, said = noisy(model), plain[:, width:]
    for b, (n, temperature) in enumerate(zip(LENGTHS, TEMPERATURES)):
        own, alone = ids[b : b + 1, -n:], settings | {"seed": 3 + b, "sampling": ss.Sampling(temperature)}
        if temperature == 0:
            like = {"attention_mask": torch.ones_like(own), "max_new_tokens": NEW, "do_sample": False}
            greedy = model.generate(own, **like)[0, n:]
            if not torch.equal(greedy, said[b]):  # some classes differ with their cache: the text counts
                greedy = model.generate(own, use_cache=False, **like)[0, n:]
                note = "transformers' `generate` with a cache differs from itself without"
            compare(f"greedy, request {b}", greedy, said[b])
        else:
            compare(f"alone, request {b}", ss.generate(model, None, own, **alone)[0, n:], said[b])
            compare(
                f"race alone, request {b}",
                ss.generate(model, draft, own, scheme="race", **alone, **SHAPES["paths"])[0, n:],
                said[b],
            )
    masks, reading = models.takes_masks(model), tree_cache.takes_masks
    for by_masks in {masks, False}:
        for name, shape in SHAPES.items():
            if by_masks == masks or name != "chain":
                tree_cache.takes_masks = lambda model: by_masks
                try:
                    output, stats = ss.generate(model, draft, ids, scheme="race", return_stats=True, **batch, **shape)
                finally:
                    tree_cache.takes_masks = reading
                compare(f"race, {name}{' by masks' * by_masks}", output, plain)
                accepted += sum(stats.accepted)
    compare("race, look-up", ss.generate(model, ss.NgramDrafter(), ids, scheme="race", **batch), plain)
    cold = batch | {"sampling": ss.Sampling(0.0), "draft_sampling": ss.Sampling()}
    cold = ss.generate(model, draft, ids, scheme="token", depth=3, **cold)[:, width:]
    for b in (b for b, temperature in enumerate(TEMPERATURES) if temperature == 0):
        compare(f"greedy, token, request {b}", cold[b], said[b])
    if accepted == 0 or len(said.unique()) < 6:
        wrong.append(f"a test without power: {accepted} drafts accepted, {len(said.unique())} different tokens")
    return Finding("masks" if masks else "paths" if models.abilities(model).batched else "alone", wrong, note)


def _refused(model, reason, settings):
    """The same as a draft model, without any token emitted before."""
    from models import tiny_llama

    import specsample as ss

    wrong = [] if reason.startswith("model: ") else ["the argument is not named"]
    try:
        ss.generate(tiny_llama(0), model, torch.ones(1, max(LENGTHS), dtype=torch.int64), **settings)
        wrong.append("not refused as a draft model")
    except ValueError as refusal:
        if str(refusal) != reason.replace("model: ", "draft: ", 1):
            wrong.append(f"as a draft model: {refusal}")
    return Finding("refused", wrong, reason.split("got ", 1)[1].split(", ", 1)[-1])


@torch.no_grad()
def main(words):
    names = [name for name in [*classes(), *VARIANTS] if not words or any(word.lower() in name.lower() for word in words)]
    rows, unbuilt, failed = [], {}, 0
    for name in names:
        start = time.time()
        try:
            model = build(name)
        except Exception as error:
            unbuilt[name] = str(error).strip().splitlines()[-1].strip()
            print(f"{name:40s} not built: {unbuilt[name]}", flush=True)
            continue
        try:
            found = try_model(model)
        except Exception as error:
            if words:
                raise
            found = Finding("ERROR", [f"{type(error).__name__}: {error}"])
        failed += bool(found.wrong)
        single = model.dtype == torch.float32
        rows.append((name, found, single))
        print(
            f"{name:40s} {found.how:8s}{'float32 ' * single}{time.time() - start:5.1f} s  {found.reason}{found.wrong or ''}",
            flush=True,
        )
    if not words and not failed:
        write(rows, unbuilt)
    print(f"{len(rows)} models, {failed} of them wrong; {len(unbuilt)} not built")
    return failed


def write(rows, unbuilt):
    """docs/models.md"""
    import transformers

    served = {how: [name for name, found, _ in rows if found.how == how] for how in ("masks", "paths", "alone", "refused")}
    single = ", ".join(f"`{name}`" for name, _, single in rows if single)
    text = f"""# Model classes

What `ss.generate` does with the {len({name.split(",")[0] for name, *_ in rows})} classes of causal language models that transformers
{transformers.__version__} has (and some variants of them), as target and as draft model: `make check-models` builds each with tiny random
weights, decodes in float64 and writes this page. A class is listed as supported if, for a batch of unequal prompts and for single
requests, its greedy text equals that of transformers' `generate`, and its texts with chains, paths and trees of drafts, from a noisy
copy of itself and by look-up, equal those of `draft=None`, greedy and sampled (`race`), token for token. Windows are shorter than the
texts. All others are refused with a ValueError before decoding begins.

- **{len(served["masks"])} by masks**: a tree of drafts is read in one forward call, through a 4-D attention mask.
- **{len(served["paths"])} by paths**: each path of a tree is a row of a batch. Chains cost the same as above.
- **{len(served["alone"])} one by one**: each request has its own forward calls, since other requests or padding would change its tokens
  (positions counted by cache slots; rotary frequencies that change with the text's length). Trees by paths.
- **{len(served["refused"])} refused**.

In float32, since their softmax in a float64 model is computed in float32 and overflows on padding (such a float64 model runs one by one):
{single}.

| class | |
|---|---|
"""
    say = {"masks": "by masks", "paths": "by paths", "alone": "one by one", "refused": "refused"}
    for name, found, _ in sorted(rows):
        text += f"| `{name.replace(',', '`,', 1)}{'' if ',' in name else '`'} | {say[found.how]}{': ' * bool(found.reason)}{found.reason} |\n"
    text += f"\nNot tried, since no tiny model of theirs could be built: {', '.join(f'`{name}`' for name in unbuilt)}.\n"
    page = pathlib.Path(__file__).parents[2] / "docs" / "models.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text(text)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]) > 0)
