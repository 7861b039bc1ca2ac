"""Shared by the papers' experiments: a pair of models, prompts, decoding under a setting, and the output.

Every experiment takes the demo's pair, or any pair by name or path, and prompts from a file or a data set; a cell that this
version cannot run has the reason in place of a figure.

All cells of a table take one batch of prompts, then all take the next, until there are no more, --minutes are used up, or
Ctrl-C (or SIGTERM) arrives; then the measurements so far are written, with the sample they came from.
"""

import argparse
import itertools
import json
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import specsample as ss
from benchmarks import RESULTS
from benchmarks.cpu.rounding import PROMPTS
from benchmarks.harness import Progress, machine, write_json
from specsample.decoding import Stats
from specsample.tools.acceptance import node_acceptance
from specsample.tools.pair import load_pair, logits_of

FOLDER = RESULTS / "papers"


def parser(description, name, tokens=48):
    """The arguments shared by all experiments."""
    out = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    out.add_argument("--target", help="name or path of the target (the demo's pair)")
    out.add_argument("--draft", help="name or path of the draft model")
    out.add_argument("--data", metavar="FILE|NAME",
                     help="prompts: text (one a line), .jsonl with --field, or a data set's name[:split]")  # fmt: skip
    out.add_argument("--field", default="prompt", help="the prompts' field in a .jsonl or data set (prompt)")
    out.add_argument("--prompts", type=int, default=8, help="how many of them (8)")
    out.add_argument("--repeats", type=int, default=1, help="decode each prompt so many times, each with its own streams (1)")
    out.add_argument("--tokens", type=int, default=tokens, help=f"new tokens a prompt ({tokens})")
    out.add_argument("--positions", type=int, default=320, help="of the text, for teacher-forced acceptance (320)")
    out.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32",
                     help="of the models (float32); bfloat16 is the quicker one where the processor multiplies it")  # fmt: skip
    out.add_argument("--seed", type=int, default=0)
    out.add_argument("--batch", type=int, default=4, help="prompts decoded together (4)")
    out.add_argument("--minutes", type=float, default=float("inf"),
                     help="take no new prompts after this time (from the models' being loaded), shared by the parts")  # fmt: skip
    out.add_argument("--parts", nargs="+", help="only these parts of the experiment")
    out.add_argument("--out", type=Path, default=FOLDER / f"{name}.json",
                     help="a part's JSON is NAME-part.json; its table and figure go beside it")  # fmt: skip
    return out


def questions(options):
    """The prompts as text."""
    path = None if options.data is None else Path(options.data)
    if path is None:
        texts = list(PROMPTS)
    elif path.is_file():
        lines = [line for line in path.read_text().splitlines() if line.strip()][: options.prompts]
        texts = [field(json.loads(line), options.field) for line in lines] if path.suffix == ".jsonl" else lines
    elif path.suffix in (".txt", ".jsonl") or path.is_absolute() or options.data.startswith("."):
        raise ValueError(f"--data: expected a file, or the name of a data set, got {options.data!r}, where there is no file")
    else:
        try:
            from datasets import load_dataset
        except ImportError as error:
            message = f"--data: no file {options.data!r}, and a data set needs a package: pip install datasets"
            raise ImportError(message) from error

        name, _, split = options.data.partition(":")
        try:
            rows = list(load_dataset(name, split=split or "train", streaming=True).take(options.prompts))
        except Exception as error:  # whatever error the hub or the network raises
            why = str(error).partition("\n")[0]
            raise ValueError(f"--data: cannot read the data set {options.data!r}: {why}") from error
        texts = [field(row, options.field) for row in rows]
    if not texts:
        raise ValueError(f"--data: expected prompts, got none in {options.data!r}")
    return texts[: options.prompts]


def field(row, name):
    if not isinstance(row, dict) or not isinstance(row.get(name), str):
        fields = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"--field: expected a field with text, got {name!r} where there is {fields}")
    return row[name]


class Setting(NamedTuple):
    """How a cell decodes. draft_temperature: a number, or one per path; tree: None, parents, or a budget of nodes."""

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
        self.options, self.deadline, self.stopped = options, float("inf"), False
        torch.manual_seed(0)
        texts = questions(options)
        self.pair = load_pair(options.target, options.draft, getattr(torch, options.dtype))
        self.prompts = [self.pair.encode(text) for text in texts]
        self.decoded = self.prompts * options.repeats
        self.warm, self.known = False, {}

    def late(self):
        """Whether it is too late to begin anything new."""
        return self.stopped or time.perf_counter() > self.deadline

    def sweep(self, cells, items, run, names=str):
        """run(cell, item) -> a list of results for each cell: every cell takes its first item before any takes its second.
        A cell that cannot run (ValueError) or was not reached is {"missing": why}."""
        found, progress = {cell: [] for cell in cells}, Progress(len(cells) * len(items))
        try:
            for item, cell in itertools.product(items, cells):
                if self.late():
                    print("out of time", file=sys.stderr)
                    break
                if isinstance(found[cell], list):
                    try:
                        found[cell].append(run(cell, item))
                    except ValueError as error:
                        found[cell] = {"missing": str(error)}
                progress.step(names(cell))
        except KeyboardInterrupt:
            self.stopped = True
        return {cell: results or {"missing": "out of time"} for cell, results in found.items()}

    def decode(self, settings, prompts=None, batch=None):
        """Decode under every setting. {key: Setting} -> {key: figures, or {"missing": why}}
        prompts, batch: in place of the prompts repeated --repeats times, and of --batch"""
        if not self.warm and not self.late():  # the first calls of a process are slow
            self.warm = True
            ss.generate(self.pair.target, self.pair.draft, self.prompts[0], max_new_tokens=4)
        prompts, batch = prompts or self.decoded, batch or self.options.batch
        firsts = range(0, len(prompts), batch)
        run = lambda key, first: self.one_batch(settings[key], prompts[first : first + batch], first)
        found = self.sweep(settings, firsts, run, names)
        return {key: one if isinstance(one, dict) else figures(one) for key, one in found.items()}

    def one_batch(self, setting, prompts, first):
        """-> (Stats, seconds, prompts) of these prompts, which begin at number `first` of all"""
        ids, mask = left_padded(prompts)
        begin = time.perf_counter()
        _, stats = ss.generate(
            self.pair.target, *self.drafts(setting), ids, attention_mask=mask, seed=1000 * self.options.seed + first,
            **self.arguments(setting), return_stats=True,
        )  # fmt: skip
        return stats, time.perf_counter() - begin, len(prompts)

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

    def texts(self):
        """Texts of the target at temperature 1, so that they have its law, one after another while there is time (at least one):
        yields (prompt and new tokens int64 [W], how many are new)"""
        count = -(-self.options.positions // len(self.prompts))
        for i, ids in enumerate(self.prompts):
            new = min(count, self.options.positions - i * count)
            if new <= 0 or i > 0 and self.late():
                return
            if i not in self.known:
                text = ss.generate(
                    self.pair.target, self.pair.draft, ids, max_new_tokens=new, depth=2, scheme="race",
                    seed=self.options.seed + i,
                )[0]  # fmt: skip
                self.known[i] = text, text.shape[0] - ids.shape[1]
            yield self.known[i]

    def logits(self, texts):
        """[(target logits [n, V], draft logits [n, V'])] at the new tokens of each text"""
        rows = []
        for text, new in texts:
            both = (torch.cat(list(logits_of(model, text[:-1])))[-new:] for model in (self.pair.target, self.pair.draft))
            rows.append(tuple(both))
        return rows

    def head(self):
        """What identifies the run."""
        facts = {key: getattr(self.options, key) for key in ("data", "repeats", "tokens", "seed", "batch", "dtype")}
        return {"machine": machine(), "pair": self.pair.name, "prompts": len(self.prompts), **facts}


def left_padded(prompts):
    """(ids, mask) int64 [B, W]"""
    width = max(ids.shape[1] for ids in prompts)
    pad = lambda x: torch.nn.functional.pad(x, (width - x.shape[1], 0))
    return torch.cat([pad(ids) for ids in prompts]), torch.cat([pad(torch.ones_like(ids)) for ids in prompts])


def figures(batches):
    """The figures of a decoding [(Stats, seconds, prompts)]; half_width_95 is that of block efficiency, with rounds taken as
    independent."""
    stats = Stats()
    for part, *_ in batches:
        stats.add(part)
    seconds, prompts = (sum(x) for x in list(zip(*batches))[1:])
    rounds = stats.rounds
    reach = [a / rounds for a in stats.accepted]  # probability that a round accepts at least i + 1 drafts
    mean = sum(reach)
    variance = sum((2 * i + 1) * chance for i, chance in enumerate(reach)) - mean**2
    return {
        "block_efficiency": stats.block_efficiency, "half_width_95": 1.96 * (max(variance, 0.0) / rounds) ** 0.5,
        "prompts": prompts, "rounds": rounds, "emitted": stats.emitted, "acceptance": stats.acceptance,
        "tokens_per_second": stats.emitted / seconds, "seconds": stats.seconds,
    }  # fmt: skip


def names(key):
    """A cell's key as the progress line shows it."""
    return ", ".join(map(str, key)) if isinstance(key, tuple) else str(key)


def teacher_forced(bench, ks, draft_temperatures=(None,), schemes=None):
    """{draft temperature: {scheme: {"mean", "half_width_95" [len(ks)]}}}: acceptance of a node over the positions of the
    target's texts; and the number of positions"""
    curves, total = {t: {} for t in draft_temperatures}, 0
    for i, text in enumerate(bench.texts()):
        try:
            rows = bench.logits([text])
            here = {
                t: node_acceptance(
                    rows, text[1], ks, ss.Sampling(), None if t is None else ss.Sampling(t), schemes=schemes,
                    seed=1000 * bench.options.seed + i,
                )
                for t in draft_temperatures
            }  # fmt: skip
        except KeyboardInterrupt:
            bench.stopped = True
            if not total:
                raise
            break
        total += text[1]
        for t, found in here.items():
            for name, curve in found.items():
                curves[t].setdefault(name, []).append(curve.value)
    numbers = lambda x: [None if v != v else v for v in x.tolist()]
    out = {}
    for t, found in curves.items():
        values = {name: np.concatenate(value) for name, value in found.items()}
        out[t] = {
            name: {"mean": numbers(value.mean(0)), "half_width_95": numbers(1.96 / total**0.5 * value.std(0))}
            for name, value in values.items()
        }
    return out, total


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
    return None if row is None or "missing" in row else (row["block_efficiency"], row["half_width_95"])


def run(options, parts):
    """Run the selected parts, each to its own files. parts: {name: f(bench, options, rows, tables)}"""
    unknown = set(options.parts or ()) - set(parts)
    if unknown:
        raise SystemExit(f"--parts: expected some of {', '.join(parts)}, got {', '.join(sorted(unknown))}")
    wanted = [name for name in parts if not options.parts or name in options.parts]
    old = signal.signal(signal.SIGTERM, signal.default_int_handler)  # KeyboardInterrupt, as for Ctrl-C
    try:
        try:
            bench = Bench(options)
        except (ValueError, ImportError, OSError) as error:
            raise SystemExit(str(error)) from error
        begin = time.perf_counter()
        for i, name in enumerate(wanted):
            now, rows, tables = time.perf_counter(), [], []
            bench.deadline = now + (60 * options.minutes - (now - begin)) / (len(wanted) - i)
            try:
                parts[name](bench, options, rows, tables)
            except KeyboardInterrupt:  # outside the interruptible sections
                bench.stopped = True
            path = options.out.with_name(f"{options.out.stem}-{name}.json")
            if rows:
                write({**bench.head(), "took": time.perf_counter() - now, "rows": rows}, tables, path)
            if bench.stopped:
                raise SystemExit(f"interrupted in {name}; " + (f"what was done is in {path}" if rows else "nothing was done"))
    finally:
        signal.signal(signal.SIGTERM, old)


def write(result, tables, path):
    """JSON and, beside it, the tables"""
    write_json(path, result)
    facts = result["machine"]
    reached = sorted({row["prompts"] for row in result["rows"] if "prompts" in row} - {result["prompts"] * result["repeats"]})
    often = f", each {result['repeats']} times" if result["repeats"] > 1 else ""
    few = f" ({', '.join(map(str, reached))} in cells that time or Ctrl-C cut short)" if reached else ""
    source = (
        f"{result['pair']}; {result['prompts']} prompts{often}{few}, {result['tokens']} new tokens each, batches of {result['batch']}, "
        f"seed {result['seed']}, {result['dtype']}. {facts['cpu']}, {facts['threads']} threads, torch {facts['torch']}, "
        f"transformers {facts['transformers']}, {facts['date'][:10]}, revision {facts['revision']}. ± is half a 95 % interval."
    )
    missing = dict.fromkeys(f"{row['scheme']}: {row['missing']}" for row in result["rows"] if "missing" in row)
    notes = [f"Not run: {reason}." for reason in missing]
    path.with_suffix(".md").write_text("\n".join([source, "", *tables, *notes]) + "\n")
    print("\n".join([*tables, *notes]))


__all__ = ["Bench", "Progress", "Setting", "efficiency", "parser", "run", "table", "teacher_forced"]
