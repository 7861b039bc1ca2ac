"""Does decoding accept what theory says? `python -m benchmarks.papers.check [-k 4]`

Every scheme decodes the prompts with K drafts of one token. Afterwards both models' laws at the prefix of every round
are known, and with them the exact probability a_r that the round accepts. The number accepted minus Σ a_r is a
martingale, so it lies within 1.96·√(Σ a_r (1 − a_r)) of 0 in 95 % of runs; the table shows it in standard deviations.
"""

import numpy as np
import torch

import specsample as ss
from benchmarks.papers import common
from benchmarks.papers.common import Setting, table
from specsample.tools.acceptance import node_acceptance
from specsample.tools.pair import logits_of


class Rounds:
    """A streamer that records the rounds: (new tokens before it, drafts accepted)"""

    def __init__(self):
        self.rounds, self.count, self.is_prompt = [], 0, True

    def put(self, tokens):  # the prompt
        pass

    def put_round(self, tokens, num_accepted):
        self.rounds.append((self.count, num_accepted))
        self.count += len(tokens)

    def end(self):
        pass


def main(arguments=None):
    parser = common.parser(__doc__, "check")
    parser.add_argument("-k", type=int, default=4, help="drafts (4)")
    parser.add_argument("--schemes", nargs="+", default=[name for name in ss.schemes() if name != "weighted"])
    common.run(parser.parse_args(arguments), {"measured": measured})


def measured(bench, options, rows, tables):
    settings = {}
    for name in options.schemes:
        settings[name] = Setting(name, options.k if ss.schemes()[name].trees else 1, 1)
    found = bench.sweep(settings, range(len(bench.decoded)), lambda name, i: one(bench, settings[name], i))
    cells = []
    for name, setting in settings.items():
        row = found[name] if isinstance(found[name], dict) else total(found[name])
        rows.append({"scheme": name, "paths": setting.paths, **row})
        if "missing" not in row:
            numbers = [f"{row['measured']:.4f}", f"{row['theory']:.4f}", f"{row['deviations']:+.2f}", str(row["rounds"])]
            cells.append([f"{name}, K = {setting.paths}", *numbers])
    head = ["scheme", "measured", "theory", "standard deviations apart", "rounds"]
    tables.append(table("Acceptance of drafts of one token, in decoding and by theory at the same prefixes", head, cells))


def one(bench, setting, i):
    """Decode the i-th prompt with drafts of one token. -> (number accepted, acceptance probabilities float64 [rounds])"""
    ids, streamer = bench.decoded[i], Rounds()
    text = ss.generate(
        bench.pair.target, bench.pair.draft, ids, streamer=streamer, seed=1000 * bench.options.seed + i,
        **bench.arguments(setting),
    )[0]  # fmt: skip
    # The last token may have been emitted without a draft.
    seen = [(at, took) for at, took in streamer.rounds if at < bench.options.tokens - 1]
    at = ids.shape[1] - 1 + torch.tensor([at for at, _ in seen], dtype=torch.int64)
    logits = [torch.cat(list(logits_of(model, text[:-1])))[at] for model in (bench.pair.target, bench.pair.draft)]
    sampling = ss.Sampling(setting.temperature)
    curve = node_acceptance([logits], len(seen), [setting.paths], sampling, schemes=[setting.scheme])[setting.scheme]
    return sum(took for _, took in seen), curve.value[:, 0]


def total(prompts):
    """Measured and expected acceptance over prompts [(number accepted, probabilities)]"""
    accepted, chances = sum(took for took, _ in prompts), np.concatenate([chance for _, chance in prompts])
    deviation = (chances * (1 - chances)).sum() ** 0.5
    return {
        "measured": accepted / len(chances), "theory": chances.mean(), "rounds": len(chances), "prompts": len(prompts),
        "deviations": float((accepted - chances.sum()) / deviation),
    }  # fmt: skip


if __name__ == "__main__":
    main()
