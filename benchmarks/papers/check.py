"""Does decoding accept what theory says? `python benchmarks/papers/check.py [-k 4]`

Every scheme decodes the prompts with K drafts of one token. At the prefix of every round both models' laws are known
afterwards, and with them the exact chance a_r that the round accepts. The sum of what was accepted less a_r is a
martingale, so it lies within 1.96·√(Σ a_r (1 − a_r)) of 0 in 95 % of runs; the table shows it in standard deviations.
"""

import common
import torch
from common import Setting, table

import specsample as ss
from specsample.acceptance import node_acceptance
from specsample.pair import logits_of


class Rounds:
    """A streamer that remembers the rounds: (new tokens before it, drafts accepted)"""

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
    progress, cells = common.Progress(len(options.schemes)), []
    for name in options.schemes:
        paths = options.k if ss.schemes()[name].trees else 1
        row = one(bench, Setting(name, paths, 1))
        rows.append({"scheme": name, "paths": paths, **row})
        if "missing" not in row:
            figures = [f"{row['measured']:.4f}", f"{row['theory']:.4f}", f"{row['deviations']:+.2f}", str(row["rounds"])]
            cells.append([f"{name}, K = {paths}", *figures])
        progress.step(name)
    head = ["scheme", "measured", "theory", "standard deviations apart", "rounds"]
    tables.append(table("Acceptance of drafts of one token, in decoding and by theory at the same prefixes", head, cells))


def one(bench, setting):
    """Measured and expected acceptance of a setting with drafts of one token, or {"missing": why}"""
    accepted, chances, variance, rounds = 0, 0.0, 0.0, 0
    for i, ids in enumerate(bench.prompts):
        streamer = Rounds()
        try:
            text = ss.generate(
                bench.pair.target, bench.pair.draft, ids, streamer=streamer, seed=1000 * bench.options.seed + i,
                **bench.arguments(setting),
            )[0]  # fmt: skip
        except ValueError as error:
            return {"missing": str(error)}
        # The last token may have been emitted without a draft.
        seen = [(at, took) for at, took in streamer.rounds if at < bench.options.tokens - 1]
        at = ids.shape[1] - 1 + torch.tensor([at for at, _ in seen])
        logits = [torch.cat(list(logits_of(model, text[:-1])))[at] for model in (bench.pair.target, bench.pair.draft)]
        sampling = ss.Sampling(setting.temperature)
        curve = node_acceptance([logits], len(seen), [setting.paths], sampling, schemes=[setting.scheme])[setting.scheme]
        chance = curve.value[:, 0]
        accepted += sum(took for _, took in seen)
        chances, variance, rounds = chances + chance.sum(), variance + (chance * (1 - chance)).sum(), rounds + len(seen)
    return {
        "measured": accepted / rounds, "theory": chances / rounds, "rounds": rounds,
        "deviations": float((accepted - chances) / variance**0.5),
    }  # fmt: skip


if __name__ == "__main__":
    main()
