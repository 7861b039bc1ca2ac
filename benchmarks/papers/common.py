"""What the papers' experiments share: a pair of models, prompts, decoding under a setting, and the output.

Every experiment takes the demo's pair, or any pair by name or path, and prompts from a file or a data set; a cell that this
version cannot run is written down with the reason instead of a figure.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
for folder in (HERE.parent, HERE.parent.parent):  # the other benchmarks; the package, where it is not installed
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import torch  # noqa: E402
from harness import Progress, machine, write_json  # noqa: E402
from rounding import PROMPTS  # noqa: E402

import specsample as ss  # noqa: E402
from specsample.acceptance import node_acceptance  # noqa: E402
from specsample.decoding import Stats  # noqa: E402
from specsample.pair import load_pair, logits_of, need  # noqa: E402

RESULTS = HERE.parent / "results" / "papers"


def parser(description, name, tokens=48):
    """The arguments that all experiments have."""
    out = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    out.add_argument("--target", help="name or path of the target (the demo's pair)")
    out.add_argument("--draft", help="name or path of the draft model")
    out.add_argument("--data", metavar="FILE|NAME",
                     help="prompts: text (one a line), .jsonl with --field, or a data set's name[:split]")  # fmt: skip
    out.add_argument("--field", default="prompt", help="the prompts' field in a .jsonl or data set (prompt)")
    out.add_argument("--prompts", type=int, default=8, help="how many of them (8)")
    out.add_argument("--tokens", type=int, default=tokens, help=f"new tokens a prompt ({tokens})")
    out.add_argument("--positions", type=int, default=320, help="of the text, for teacher-forced acceptance (320)")
    out.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32",
                     help="of the models (float32); bfloat16 is the quicker one where the processor multiplies it")  # fmt: skip
    out.add_argument("--seed", type=int, default=0)
    out.add_argument("--batch", type=int, default=4, help="prompts decoded together (4)")
    out.add_argument("--limit", type=float, default=float("inf"), metavar="SECONDS",
                     help="leave out the cells that would start later")  # fmt: skip
    out.add_argument("--parts", nargs="+", help="only these parts of the experiment")
    out.add_argument("--out", type=Path, default=RESULTS / f"{name}.json",
                     help="a part's JSON is NAME-part.json; its table and figure go beside it")  # fmt: skip
    return out


def questions(options):
    """The prompts as text."""
    if options.data is None:
        texts = list(PROMPTS)
    elif Path(options.data).is_file():
        lines = [line for line in Path(options.data).read_text().splitlines() if line.strip()]
        texts = [json.loads(line)[options.field] for line in lines] if options.data.endswith(".jsonl") else lines
    else:
        need("datasets")
        from datasets import load_dataset

        name, _, split = options.data.partition(":")
        rows = load_dataset(name, split=split or "train", streaming=True)
        texts = [row[options.field] for row in rows.take(options.prompts)]
    return texts[: options.prompts]


class Setting(NamedTuple):
    """How a cell decodes. draft_temperature: a number, or one a path; tree: None, parents, or a budget of nodes."""

    scheme: str
    paths: int = 1
    depth: int = 4
    temperature: float = 1.0
    draft_temperature: object = None
    tree: object = None
    options: dict | None = None


class Bench:
    """The models, the prompts, and the clock of one run."""

    def __init__(self, options):
        self.options, self.begin = options, time.perf_counter()
        torch.manual_seed(0)
        self.pair = load_pair(options.target, options.draft, getattr(torch, options.dtype))
        self.prompts = [self.pair.encode(text) for text in questions(options)]
        self.warm, self.known = False, {}

    def decode(self, setting):
        """Decode all prompts. -> figures of the setting, or {"missing": why}"""
        if time.perf_counter() - self.begin > self.options.limit:
            return {"missing": "out of time"}
        if not self.warm:  # the first calls of a process are slow
            self.warm = True
            ss.generate(self.pair.target, self.pair.draft, self.prompts[0], max_new_tokens=4)
        total, size = Stats(), self.options.batch
        begin = time.perf_counter()
        for first in range(0, len(self.prompts), size):
            ids, mask = left_padded(self.prompts[first : first + size])
            try:
                _, stats = ss.generate(
                    self.pair.target, *self.drafts(setting), ids, attention_mask=mask, seed=1000 * self.options.seed + first,
                    **self.arguments(setting), return_stats=True,
                )  # fmt: skip
            except ValueError as error:
                return {"missing": str(error)}
            total.add(stats)
        return figures(total, time.perf_counter() - begin)

    def drafts(self, setting):
        if setting.scheme == "plain":
            return (None,)
        several = isinstance(setting.draft_temperature, (list, tuple))
        return ([self.pair.draft] * len(setting.draft_temperature) if several else self.pair.draft,)

    def arguments(self, setting):
        """Keyword arguments of `generate`."""
        out = {"max_new_tokens": self.options.tokens, "sampling": ss.Sampling(setting.temperature)}
        if setting.scheme == "plain":
            return out
        out |= {"scheme": setting.scheme, "depth": setting.depth, "options": setting.options}
        if isinstance(setting.draft_temperature, (list, tuple)):
            out["draft_sampling"] = [ss.Sampling(t) for t in setting.draft_temperature]
        elif setting.draft_temperature is not None:
            out["draft_sampling"] = ss.Sampling(setting.draft_temperature)
        if setting.paths > 1:
            out["paths"] = setting.paths
        if setting.tree is not None:
            out["tree"] = setting.tree
        return out

    def texts(self, temperature=1.0):
        """Texts of the target, so that they have its law: [(prompt and new tokens int64 [W], how many are new)]"""
        if temperature in self.known:
            return self.known[temperature]
        out, left, progress = [], self.options.positions, Progress(len(self.prompts))
        for i, ids in enumerate(self.prompts):
            if left <= 0:
                break
            count = min(left, -(-self.options.positions // len(self.prompts)))
            text = ss.generate(
                self.pair.target, self.pair.draft, ids, max_new_tokens=count, depth=2, scheme="race",
                seed=self.options.seed + i, sampling=ss.Sampling(temperature),
            )[0]  # fmt: skip
            out.append((text, text.shape[0] - ids.shape[1]))
            left -= out[-1][1]
            progress.step("texts of the target")
        self.known[temperature] = out
        return out

    def logits(self, texts):
        """[(target logits [n, V], draft logits [n, V'])] at the new tokens of each text"""
        rows = []
        for text, new in texts:
            both = (torch.cat(list(logits_of(model, text[:-1])))[-new:] for model in (self.pair.target, self.pair.draft))
            rows.append(tuple(both))
        return rows

    def head(self):
        """What the figures belong to."""
        facts = {key: getattr(self.options, key) for key in ("data", "tokens", "seed", "batch", "dtype")}
        return {"machine": machine(), "pair": self.pair.name, "prompts": len(self.prompts), **facts}


def left_padded(prompts):
    """(ids, mask) int64 [B, W]"""
    width = max(ids.shape[1] for ids in prompts)
    pad = lambda x: torch.nn.functional.pad(x, (width - x.shape[1], 0))  # noqa: E731
    return torch.cat([pad(ids) for ids in prompts]), torch.cat([pad(torch.ones_like(ids)) for ids in prompts])


def figures(stats, seconds):
    """The figures of a decoding; half_width_95 is that of block efficiency, rounds taken as independent."""
    rounds = stats.rounds
    reach = [a / rounds for a in stats.accepted]  # chance that a round accepts at least i + 1 drafts
    mean = sum(reach)
    variance = sum((2 * i + 1) * chance for i, chance in enumerate(reach)) - mean**2
    return {
        "block_efficiency": stats.block_efficiency, "half_width_95": 1.96 * (max(variance, 0.0) / rounds) ** 0.5,
        "rounds": rounds, "emitted": stats.emitted, "acceptance": stats.acceptance,
        "tokens_per_second": stats.emitted / seconds, "seconds": stats.seconds,
    }  # fmt: skip


def teacher_forced(bench, texts, ks, sampling=ss.Sampling(), draft_sampling=None, schemes=None):
    """{scheme: {"mean", "half_width_95" [len(ks)]}}: acceptance of a node over all positions of the texts"""
    rows = bench.logits(texts)
    total = sum(len(target) for target, _ in rows)
    curves = node_acceptance(rows, total, ks, sampling, draft_sampling, schemes=schemes, seed=bench.options.seed)
    half = 1.96 / total**0.5
    numbers = lambda x: [None if v != v else v for v in x.tolist()]  # noqa: E731
    return {
        name: {"mean": numbers(curve.value.mean(0)), "half_width_95": numbers(half * curve.value.std(0))}
        for name, curve in curves.items()
    }


def table(title, head, rows):
    """A Markdown table. rows: lists of cells: text, numbers (two decimals), (value, half width), or None"""
    def text(cell):  # fmt: skip
        if cell is None or cell != cell:
            return "–"
        if isinstance(cell, tuple):
            return "–" if cell[0] is None else f"{cell[0]:.2f} ± {cell[1]:.2f}"
        return cell if isinstance(cell, str) else f"{cell:.4g}"

    lines = [f"### {title}", "", "| " + " | ".join(head) + " |", "|---" + "|--:" * (len(head) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(text, row)) + " |" for row in rows), ""])


def efficiency(row):
    """The cell of a decoding's figures"""
    return None if "missing" in row else (row["block_efficiency"], row["half_width_95"])


def run(options, parts):
    """Run the parts that are wanted, each to its own files. parts: {name: f(bench, options, rows, tables)}"""
    unknown = set(options.parts or ()) - set(parts)
    if unknown:
        raise SystemExit(f"--parts: expected some of {', '.join(parts)}, got {', '.join(sorted(unknown))}")
    bench = Bench(options)
    for name, part in parts.items():
        if not options.parts or name in options.parts:
            rows, tables = [], []
            part(bench, options, rows, tables)
            write({**bench.head(), "rows": rows}, tables, options.out.with_name(f"{options.out.stem}-{name}.json"))


def write(result, tables, path):
    """JSON and, beside it, the tables"""
    write_json(path, result)
    facts = result["machine"]
    source = (
        f"{result['pair']}; {result['prompts']} prompts, {result['tokens']} new tokens each, batches of {result['batch']}, "
        f"seed {result['seed']}, {result['dtype']}. {facts['cpu']}, {facts['threads']} threads, torch {facts['torch']}, "
        f"transformers {facts['transformers']}, {facts['date'][:10]}, revision {facts['revision']}. ± is half a 95 % interval."
    )
    missing = dict.fromkeys(f"{row['scheme']}: {row['missing']}" for row in result["rows"] if "missing" in row)
    notes = [f"Not run: {reason}." for reason in missing]
    path.with_suffix(".md").write_text("\n".join([source, "", *tables, *notes]) + "\n")
    print("\n".join([*tables, *notes]))


__all__ = ["Bench", "Progress", "Setting", "efficiency", "parser", "run", "table", "teacher_forced"]
