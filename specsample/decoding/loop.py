"""The decoding loop: draft, run the target once, verify, keep the accepted tokens, until every request is finished."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..api import sample, verify
from ..sampling import Sampling
from .arguments import check
from .drafters import ModelDrafter, PathsDrafter
from .drafts import Drafts
from .processors import first_stop
from .proposal import Prefixes, RoundInfo
from .settings import warn_of_settings
from .stats import Laps, Stats
from .tree_cache import cached_model


@torch.no_grad()
def generate(
    model: Callable[..., Any],
    draft: Any,
    input_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    max_new_tokens: int,
    depth: int = 4,
    paths: int = 1,
    tree: int | Sequence[int] | Tensor | None = None,
    scheme: str = "token",
    options: Mapping[str, float] | None = None,
    sampling: Sampling = Sampling(),
    draft_sampling: Sampling | Sequence[Sampling] | None = None,
    seed: int | Tensor = 0,
    eos_token_id: int | Collection[int] | None = None,
    logits_processor: Sequence | None = None,
    stopping_criteria: Sequence | None = None,
    streamer: Any = None,
    return_stats: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Stats]:
    """Continue each prompt with tokens distributed exactly as if sampled from the target, in fewer target calls than tokens.

    model           the target: a transformers causal LM, or anything with the same call signature and outputs
    draft           what proposes tokens: a causal LM with the same tokenizer (its vocabulary may be narrower or wider), a sequence
                    of them, one per path (schemes `weighted` and `race`), `NgramDrafter()`, any object with `propose` and
                    `commit` (specsample/decoding/proposal.py), or None for plain sampling
    input_ids       int64 [B, W], padded left or right where attention_mask [B, W] is 0; None = all tokens are real
    max_new_tokens  int >= 1, for each request. ValueError if the target's position embeddings (learned, or a table of sinusoids)
                    are too few for the longest prompt and these tokens; rotary positions and linear biases have no limit.
    depth           int: tokens drafted per round, fewer if fewer may still be emitted
    paths           int: chains of `depth` tokens drafted per round, for a scheme that takes trees. Their first tokens are drawn
                    together, as `ss.draft(logits, paths, kind=…)` draws them for the scheme: independently, without replacement
                    (`recursive_distinct`), the first arrivals (`race`), the likeliest and one of the rest (`top`), one on each
                    clock list (`lists`). After that each chain continues on its own (`lists`: on its list; `race`: equal prefixes
                    continue equally). Equal prefixes are computed once. With `NgramDrafter()`, under `race`: that many continuations.
    tree            list of parents (−1 = child of the root): a tree of this shape, children drawn as above at every node;
                    `depth` is then the tree's. Or an int: a tree of that many nodes and at most `depth` levels, those of the
                    likeliest paths under the draft (`race` only, since the tokens shape that tree)
    scheme          see `ss.schemes()`. Under "race" the output is that of `draft=None`, token for token
    options         settings of the scheme
    sampling        temperature and filters of the target. Each field may hold one value per request
    draft_sampling  the same for the draft; None = the target's. A list holds one per path (`weighted` and `race`)
    seed            int64 [B], or an int s, short for s, s + 1, …, s + B − 1
    eos_token_id    int or list; None = that of model.generation_config, if any
    logits_processor
                    list of functions of (input_ids [n, len], scores [n, V]) -> scores, from transformers or your own, or such a
                    list per request: repetition penalty, banned words, a grammar. They are applied before `sampling`'s filters, at
                    every node with its own prefix, to target and draft (specsample/decoding/processors.py). A row in which
                    they leave no token ends the text.
    stopping_criteria
                    list of functions of (input_ids [1, len], None) -> bool, likewise; called after each kept token
    streamer        for a single request: `put(tokens)` receives the prompt, then each round's tokens; `end()` is called last. If it
                    has `put_round(tokens, num_accepted)`, rounds go there: the first num_accepted tokens are drafts.
    return_stats    also return `Stats`
    backend         as in `verify`
    -> int64 [B, W + new]: the prompts as given, then the new tokens; after eos the model's pad id (or the eos id)
       With return_stats: (that tensor, Stats)

    A request's tokens depend on its own prompt, seed and settings. Other requests in the batch, and padding, can change them only
    by changing how the model itself rounds. Positions count a request's tokens, without padding.

    Of model.generation_config only the eos and padding ids are used: temperature, top_k and the like come from `sampling`.
    A warning names any other setting there that would change the distribution or the end of the text. Pass these as
    logits_processor and stopping_criteria, or pass [] to decline them (specsample/decoding/settings.py).

    If the draft model runs out of positions before the text ends, sampling continues without drafts (`Stats.out_of_positions`).

    Transformers models that honour a 4-D attention mask read a tree in one forward call, with positions by depth; other models
    read each path as a row of a larger batch. The caches then keep the accepted nodes. Which of the two applies is tested on a few
    tokens, once per model (specsample/decoding/models.py). Requests are read one by one if padding or other requests would
    change a model's output: positions counted by cache slots, or frequencies that change once a text is long, as in Phi-3's longrope
    (the text is then re-read). Models without a key-value cache that can be rewound are rejected (recurrent, encoder-decoder, …),
    and so are texts so long that dynamic rotary frequencies change: docs/models.md.

    Errors: ValueError naming the argument, before the first forward call; for a drafter's proposals, when they arrive.
    """
    given = check(
        model, draft, input_ids, attention_mask, max_new_tokens, depth, paths, tree, scheme, options, sampling,
        draft_sampling, seed, eos_token_id, streamer, backend, logits_processor, stopping_criteria,
    )  # fmt: skip
    warn_of_settings(model, logits_processor is not None, stopping_criteria is not None, bool(given.eos))
    output, stats = run(model, draft, input_ids, given, max_new_tokens, scheme, options, sampling, streamer, backend)
    return (output, stats) if return_stats else output


def run(model, draft, input_ids, given, max_new_tokens, scheme, options, sampling, streamer, backend, record=None):
    """`generate` after its checks. given: the result of `check`.

    record  None, or called each round as record(raw, logits, rows): the target's logits [B, R, V] before and after processing, and
            a list per request: the row that decided each kept token
    -> (what `generate` returns, Stats)
    """
    stats = Stats()
    lap = Laps(stats.seconds)
    device, batch = input_ids.device, input_ids.shape[0]
    tokens, prompt_lengths = _unpad(input_ids.long(), given.mask)
    # Lengths and flags live on the host, where every shape is decided; one copy per round brings the results there.
    lengths, remaining, active = prompt_lengths, [max_new_tokens] * batch, [True] * batch
    read = lengths  # how much of each request the target reads: the prefix; for a finished request no more than before
    # A custom drafter may propose trees even if none was requested.
    grows = given.tree is not None or given.drafter is not None and given.card.trees and given.drafter is draft
    longest = max(lengths) + max_new_tokens
    target = cached_model(model, Prefixes(tokens, torch.tensor(lengths)), longest, grows)
    if streamer is not None:
        streamer.put(input_ids.cpu())

    while any(active):
        prefixes = Prefixes(tokens, torch.tensor(lengths))
        position = prefixes.lengths.to(device)
        # A round emits one token more than it accepts. Each request has its own limit: under `block` the number of drafts
        # enters the decision, and other requests must not.
        limit = [
            min(left - 1, given.depth, target.room(length)) if going else 0
            for left, length, going in zip(remaining, lengths, active)
        ]
        read = [length if going else before for length, before, going in zip(lengths, read, active)]
        drafts = None
        if given.drafter is not None and max(limit) > 0:
            info = RoundInfo(
                given.seed, position, given.draft_samplings, scheme, given.card.draft_kind, torch.tensor(active), backend,
                given.tree, given.process and given.process.draft, longest,
            )  # fmt: skip
            proposal = given.drafter.propose(prefixes, max(limit), info)
            if isinstance(given.drafter, (ModelDrafter, PathsDrafter)):
                stats.out_of_positions += sum(levels < most for levels, most in zip(given.drafter.room, limit))
            drafts = Drafts(proposal, given.tree, batch, limit, device, given.card)
            drafts = drafts if drafts.tokens.shape[1] else None
        lap("draft")

        text = Prefixes(tokens, torch.tensor(read))
        raw = logits = target(text, tokens[:, :0]) if drafts is None else drafts.read(target, text)
        lap("target" if stats.target_calls else "prefill")
        if given.process is not None:
            nodes = [[] for _ in active] if drafts is None else drafts.nodes(target)
            logits = given.process.target(logits, prefixes, nodes, active)
        processed = logits

        if drafts is None:
            drawn = sample(logits[:, 0], sampling=sampling, seed=given.seed, position=position, backend=backend)
            emitted, accepted, drafted = drawn[:, None].tolist(), [0] * batch, [0] * batch
        else:
            logits, layout = drafts.layout(logits, given.card, given.draft_samplings)
            verdict = verify(
                logits, drafts.tokens, **layout, scheme=scheme, options=options, sampling=sampling, seed=given.seed,
                position=position, backend=backend,
            )  # fmt: skip
            emitted, accepted, drafted = drafts.decided(verdict, target)
        lap("verify")

        kept, going = map(list, zip(*map(_cut, emitted, accepted, [given.eos] * batch)))
        kept = [row if on else [] for row, on in zip(kept, active)]
        width = len(emitted[0])
        new = _rows(kept, width, device)
        if max(lengths) + width > tokens.shape[1]:
            tokens = torch.nn.functional.pad(tokens, (0, tokens.shape[1] + width))
        # Tokens beyond the kept ones land past the new length, where nothing reads them.
        tokens.scatter_(1, position[:, None] + torch.arange(width, device=device), new)
        if any(given.criteria):
            ends = [first_stop(given.criteria[b], tokens[b : b + 1], lengths[b], len(kept[b])) for b in range(batch)]
            going = [more and end is None for more, end in zip(going, ends)]
            kept = [row[:end] for row, end in zip(kept, ends)]
            new = _rows(kept, width, device)
        if record is not None:
            rows = [[0]] * batch if drafts is None else drafts.rows(verdict)
            record(raw, processed, [own[: len(row)] for own, row in zip(rows, kept)])
        stats.count([facts for *facts, on in zip(map(len, kept), accepted, drafted, active) if on])
        if given.drafter is not None:
            given.drafter.commit(new)
        if streamer is not None:
            _stream(streamer, kept[0], accepted[0])
        lengths = [length + len(row) for length, row in zip(lengths, kept)]
        remaining = [left - len(row) for left, row in zip(remaining, kept)]
        active = [on and more and left > 0 for on, more, left in zip(active, going, remaining)]
        lap("other")

    if streamer is not None:
        streamer.end()
    new = torch.tensor(lengths) - torch.tensor(prompt_lengths)
    column = torch.arange(int(new.max()))
    index = (torch.tensor(prompt_lengths)[:, None] + column).clamp(max=tokens.shape[1] - 1)
    written = tokens.gather(1, index.to(device))
    written = torch.where((column < new[:, None]).to(device), written, given.pad)
    output = torch.cat([input_ids.long(), written], 1)
    lap("other")
    return output, stats


def _unpad(input_ids, mask):
    """(tokens int64 [B, longest], each prompt's real tokens starting at column 0; list of their lengths)"""
    lengths = mask.sum(1).tolist()
    order = torch.argsort((~mask).to(torch.int8), dim=1, stable=True)[:, : max(lengths)]
    return input_ids.gather(1, order), lengths


def _rows(lists, width, device):
    """Lists of ints as int64 [B, width], padded with −1"""
    return torch.tensor([row + [-1] * (width - len(row)) for row in lists], device=device)


def _cut(emitted, accepted, eos):
    """For one request. -> tokens up to the first eos; whether it continues: no eos, and no row without a finite logit"""
    tokens = emitted[: emitted.index(-1)] if -1 in emitted else emitted
    for i, token in enumerate(tokens):
        if token in eos:
            return tokens[: i + 1], False
    return tokens, len(tokens) > accepted


def _stream(streamer, tokens, accepted):
    if not tokens:  # no finite logit: the request ends
        return
    tokens = torch.tensor(tokens)
    if hasattr(streamer, "put_round"):
        streamer.put_round(tokens, min(accepted, len(tokens)))
    else:
        streamer.put(tokens)
