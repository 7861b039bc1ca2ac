"""Random calls of `verify`, `draft`, `sample` and `row_stats` over shapes, dtypes, trees, filters, layouts and bad data.

    python tests/support/fuzz.py --calls 100000 [--seed 0] [--compare 10]

Every call must return (or raise ValueError if the arguments are detectably wrong) with ids inside [-1, V); one call in
`--compare` is also run on the reference, which must give the same tokens. Call i of a seed is the same whatever ran before it.
"""

import argparse
import random
import sys
import time
from collections import Counter

import torch

import specsample as ss

SCHEMES, KINDS = tuple(ss.schemes()), ("iid", "distinct", "arrivals", "lists", "top", "topk")
OPTIONS = {
    "bins": (64, 100, 4096), "s": (1, 5, 64), "alphabet": (0, 1, 37, 256), "levels": (2, 5, 32), "rounds": (0, 3, 20),
    "cells": (64, 1000, 4096),
}  # fmt: skip
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Call:
    """One random call, with its own generators."""

    def __init__(self, seed, index):
        self.pick = random.Random(f"{seed}/{index}")
        self.generator = torch.Generator().manual_seed(self.pick.getrandbits(60))
        self.vocab = self.pick.choice((1, 2, 3, 7, 16, 33, 64, 65, 100, 257, 1000))
        self.dtype = self.pick.choice(DTYPES)
        self.natural = True  # whether its decisions are far enough from ties to be compared

    def chance(self, probability):
        return self.pick.random() < probability

    def logits(self, *shape, near=None, huge=True):
        scale = self.pick.choice((0.0, 0.3, 2.0, 2.0, 8.0, 40.0))
        x = scale * torch.randn(*shape, generator=self.generator)
        if near is not None:
            width = min(near.shape[-1], shape[-1])
            x[..., :width] += near[..., : shape[-2], :width][..., :width] if near.shape[-2] >= shape[-2] else 0
        for value in (torch.nan, torch.inf, -torch.inf, *((3e38, -3e38) if huge else ())):
            if x.numel() and self.chance(0.07):
                x.view(-1)[torch.randint(x.numel(), (self.pick.randint(1, 4),), generator=self.generator)] = value
        if x.numel() and self.chance(0.05):
            x.view(-1, shape[-1])[self.pick.randrange(x.numel() // shape[-1])] = self.pick.choice((torch.nan, -torch.inf))
        x = x.to(self.dtype)
        if self.chance(0.2):  # a view with strides of its own
            wide = torch.full((*shape[:-1], shape[-1] + 3), torch.nan, dtype=self.dtype)
            wide[..., : shape[-1]] = x
            x = wide[..., : shape[-1]]
        return x

    def sampling(self, count):
        if self.chance(0.3):
            return ss.Sampling()
        pick = lambda *values: self.pick.choice(values)
        fields = [
            lambda: pick(1.0, 0.7, 0.0, 2.0, 1e-3), lambda: pick(0, 0, 1, 5, 60), lambda: pick(1.0, 1.0, 0.9, 0.3, 0.0),
            lambda: pick(0.0, 0.0, 0.05, 0.5),
        ]  # fmt: skip
        if self.chance(0.4):
            return ss.Sampling(*(torch.tensor([f() for _ in range(count)]) for f in fields))
        return ss.Sampling(*(f() for f in fields))

    def ints(self, low, high, *shape):
        values = torch.randint(low, max(high, low + 1), shape, generator=self.generator)
        return values.to(torch.int32) if self.chance(0.3) else values

    def spoil(self, values, *bad):
        if values.numel() and self.chance(0.15):
            values = values.clone()
            values.view(-1)[self.pick.randrange(values.numel())] = self.pick.choice(bad)
        return values

    # -- the ops -------------------------------------------------------------------------------------------------------

    def rows(self):
        """(function, arguments, vocabulary) for a call on independent rows."""
        count = self.pick.choice((0, 1, 2, 5))
        kind = self.pick.choice(("sample", "row_stats", "draft", "draft", "draft"))
        # Next to a logit of 1e38 the others have no weight in float, but still an order in double: do not compare second arrivals.
        args = {"logits": self.logits(count, self.vocab, huge=kind != "draft"), "sampling": self.sampling(count)}
        if kind != "row_stats":
            args |= {"seed": self.pick.getrandbits(62), "position": self.pick.getrandbits(35)}
        if kind == "draft":
            args |= {"k": self.pick.choice((1, 2, 3, 8)), "kind": self.pick.choice(KINDS), "depth": self.pick.randint(0, 3)}
            args["node"] = self.ints(0, 50, count).long()
        return getattr(ss, kind), args

    def tree(self, nodes):
        parents = []
        for i in range(nodes):
            parents.append(self.pick.choice((-1, -1, i - 1, self.pick.randint(-1, max(i - 1, -1)))))
        return torch.tensor(parents, dtype=torch.int64)

    def verify(self):
        scheme = self.pick.choice(SCHEMES)
        card, V = ss.schemes()[scheme], self.vocab
        batch, nodes = self.pick.choice((0, 1, 2, 4)), self.pick.choice((0, 1, 2, 3, 6, 12))
        draft_vocab = self.pick.choice((V, V, V, max(1, V - 3), V + 5))
        target = self.logits(batch, nodes + 1, V)
        draft = self.logits(batch, nodes + 1, draft_vocab, near=target.float().nan_to_num(0.0, 10.0, -10.0).clamp(-1e4, 1e4))
        seed, position = self.pick.getrandbits(40), self.pick.getrandbits(34)
        tokens = self.ints(0, min(V, draft_vocab), batch, nodes)
        args = {
            "target_logits": target, "draft_tokens": tokens, "scheme": scheme, "sampling": self.sampling(batch),
            "draft_logits": draft if not card.one_hot or self.chance(0.8) else None,
            "seed": seed, "position": position,
            "logprobs": self.pick.choice((None, None, "raw", "filtered")),
        }  # fmt: skip
        if card.trees and self.chance(0.8):
            parents = self.tree(nodes)
            args["parents"] = self.spoil(parents.expand(batch, -1).clone() if self.chance(0.3) else parents, -5, nodes, 0)
            args["max_depth"] = self.pick.choice((1, 3, nodes))
        if self.chance(0.3):
            args["rows"] = self.spoil(self.ints(0, nodes + 1, nodes + 1), -1, nodes + 1, 99)
        if args["draft_logits"] is not None:
            if self.chance(0.3):
                args["draft_rows"] = self.spoil(self.ints(0, nodes + 1, nodes), -1, 99)
            if self.chance(0.2):
                args["draft_sampling"] = self.sampling(batch)
        if card.reads_lists and self.chance(0.5):
            args["lists"] = self.spoil(self.ints(0, 4, nodes), -1, 10**6)
        if card.options and self.chance(0.3):
            args["options"] = {name: self.pick.choice(OPTIONS[name]) for name in card.options}
        drawn = args["draft_logits"] is not None and batch > 0 and self.chance(0.8)
        if drawn:
            self.draw(args)
        # Unlikely tokens share intervals of almost no length, where rounding decides between them.
        sharp = scheme not in ("optimal", "optimal_block") or "parents" not in args or args["max_depth"] == 1
        # Siblings from several rows: the first row's law counts and all but excludes some tokens, where rounding decides too.
        sharp = sharp and not (scheme == "importance" and "draft_rows" in args)
        self.natural = drawn and sharp
        args["draft_tokens"] = self.spoil(args["draft_tokens"], -1, V, 10**6, -9)
        return ss.verify, self.pack(args, batch, nodes) if self.chance(0.3) else args

    def draw(self, args):
        """Draw the nodes' tokens from the rows from which `verify` takes their laws."""
        tokens, draft = args["draft_tokens"], args["draft_logits"]
        batch, nodes = tokens.shape
        spread = lambda x, n: torch.as_tensor(x).expand(batch, n)
        parents = spread(args.get("parents", torch.arange(nodes) - 1), nodes)
        rows = spread(args.get("rows", torch.arange(nodes + 1)), nodes + 1)
        law = args.get("draft_sampling", args["sampling"])
        for i in range(nodes):
            row = rows.gather(1, (parents[:, i : i + 1] + 1).clamp(0, nodes).long())[:, 0]
            row = spread(args["draft_rows"], nodes)[:, i] if "draft_rows" in args else row
            logits = draft[torch.arange(batch), row.clamp(0, draft.shape[1] - 1).long()]
            token = ss.draft(logits, sampling=law, seed=args["seed"], position=args["position"], node=i, backend="cpu")[:, 0]
            token = torch.where(token >= 0, token, 0).to(tokens.dtype)
            if args["scheme"] == "recursive_distinct":  # no token twice: the target may be exhausted, leaving only rounding error
                twice = (parents[:, :i] == parents[:, i : i + 1]) & (tokens[:, :i] == token[:, None])
                token = torch.where(twice.any(1), -1, token)
            tokens[:, i] = token

    def pack(self, args, batch, nodes):
        """The same requests in the packed layout, one with fewer rows, one without."""
        for name in ("rows", "lists", "draft_rows"):  # a list shared by all is for the dense layout only
            args.pop(name, None)
        flat = {n: args[n].flatten(0, 1) for n in ("target_logits", "draft_logits") if args[n] is not None}
        lengths = [self.pick.choice((nodes + 1, nodes + 1, 0, 1)) for _ in range(batch)]
        cu = torch.tensor([0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0).tolist()], dtype=torch.int32)
        if "parents" in args:
            parents = args["parents"] if args["parents"].dim() == 1 else args["parents"].flatten()[: max(nodes, 1)]
            args["parents"] = parents.repeat(max(batch, 1))
        args |= flat | {"draft_tokens": args["draft_tokens"].flatten(), "cu_rows": cu, "max_depth": args.get("max_depth", nodes)}
        if isinstance(args["sampling"].temperature, torch.Tensor) and args["sampling"].temperature.numel() != batch:
            args["sampling"] = ss.Sampling()
        if "draft_sampling" in args:
            args.pop("draft_sampling")
        return args


def tokens_of(result):
    return result if isinstance(result, torch.Tensor) else result.tokens if isinstance(result, ss.Verdict) else None


def run(seed, index, compare, backend="cpu"):
    """Run one call. -> (name, tokens compared, tokens differing); raises what the call raises but for ValueError"""
    call = Call(seed, index)
    function, args = call.verify() if call.chance(0.75) else call.rows()
    name = args.get("scheme") or args.get("kind") or function.__name__
    try:
        result = function(**args, backend=backend)
    except ValueError as error:
        return f"ValueError: {str(error).split(':')[0]}", 0, 0
    tokens = tokens_of(result)
    if tokens is not None:
        width = call.vocab
        assert tokens.numel() == 0 or (int(tokens.min()) >= -1 and int(tokens.max()) < width), tokens
        if compare and call.natural:
            expected = tokens_of(function(**args, backend="reference"))
            assert tokens.shape == expected.shape
            rows = (tokens != expected).reshape(len(tokens), -1).any(-1) if len(tokens) else tokens
            return name, len(tokens), int(rows.sum())
    return name, 0, 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    parser.add_argument("--compare", type=int, default=10, help="compare one call in so many with the reference; 0: none")
    options = parser.parse_args()
    names, compared, differing, began = Counter(), 0, 0, time.monotonic()
    for i in range(options.first, options.first + options.calls):
        try:
            name, n, bad = run(options.seed, i, options.compare and i % options.compare == 0)
        except Exception:
            print(
                f"call {i} of seed {options.seed} failed: python tests/support/fuzz.py --seed {options.seed} --first {i} --calls 1"
            )
            raise
        if bad:
            print(f"call {i}: {name}: {bad} of {n} requests differ from the reference")
        names[name], compared, differing = names[name] + 1, compared + n, differing + bad
    print(f"{options.calls} calls in {time.monotonic() - began:.0f} s; {differing} of {compared} requests differ")
    print(", ".join(f"{name} {count}" for name, count in names.most_common()))
    return differing > 1e-4 * compared


if __name__ == "__main__":
    sys.exit(main())
