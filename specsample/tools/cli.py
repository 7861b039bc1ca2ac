"""The command line: demo, info, acceptance, bench, theory."""

import argparse
import runpy
import sys
from pathlib import Path

from ..api import schemes
from ..info import build_info
from . import acceptance

DESCRIPTION = "Exact, fast verification for speculative decoding."


def main(arguments=None):
    """Run a command. arguments: list of str, None = sys.argv. -> exit status"""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["bench"]:  # the runner parses its own options
        return bench(arguments[1:])
    options = parser().parse_args(arguments)
    if options.command == "info":
        print(info())
        return 0
    if options.command == "acceptance":
        return acceptance.main(options)
    if options.command == "theory":
        from ..theory.table import main as theory

        return theory(options)
    from .demo import INTERRUPTED, demo

    try:
        return demo(options)
    except KeyboardInterrupt:
        print("\nspecsample demo: stopped before anything was measured", file=sys.stderr)
        return INTERRUPTED


def parser():
    """The argument parser of all commands."""
    top = argparse.ArgumentParser(prog="specsample", description=DESCRIPTION)
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("info", help="versions, backends, schemes, devices")
    commands.add_parser("bench", help="the benchmark runner; passes its options on", add_help=False)
    demo = commands.add_parser("demo", help="speculative decoding of a real model, compared with plain decoding")
    demo.add_argument("--prompt", action="append", help="use this prompt instead of the built-in ones; may be repeated")
    demo.add_argument("--tokens", type=_positive, help="new tokens per prompt (copy 128, open 48)")
    demo.add_argument("--temperature", type=_temperature, help="one temperature instead of two per task (0 = greedy)")
    demo.add_argument("--depth", type=_positive, help="tokens drafted per round, instead of several (student 1, ngram 3 to 16)")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--scheme", choices=list(schemes()), help="only this scheme")
    demo.add_argument("--drafter", choices=["student", "ngram"], help="only this drafter")
    demo.add_argument("--task", choices=["copy", "open"], help="only text that copies from its prompt, or only open-ended text")
    demo.add_argument("--minutes", type=_minutes, default=2.0, help="time limit for showing and measuring (2)")
    demo.add_argument("--dtype", choices=["float32", "bfloat16"], help="dtype of the measured models; default: the faster one here")
    demo.add_argument("--color", action="store_true", help="colours even when the output is not a terminal")
    demo.add_argument("--no-color", action="store_true")
    text = "acceptance of every scheme on a text, from both models' distributions at each position"
    acceptance.arguments(commands.add_parser("acceptance", help=text), _positive, _temperature)
    theory = commands.add_parser("theory", help="acceptance of every scheme for two distributions, compared with the optimum")
    theory.add_argument("--target", metavar="FILE", help="target distribution [..., V]: .npy, .pt or .txt; rows are averaged")
    theory.add_argument("--draft", metavar="FILE", nargs="+", help="draft distribution, likewise; several: one child from each; "
                        "without files: synthetic Zipf-like distributions")  # fmt: skip
    theory.add_argument("--logits", action="store_true", help="the files hold logits, not probabilities")
    theory.add_argument("--vocab", type=_positive, default=1000, help="size of the synthetic vocabulary (1000)")
    theory.add_argument("--noise", type=float, default=1.0, help="standard deviation of draft - target logits (1)")
    theory.add_argument("--seed", type=int, default=0)
    theory.add_argument("-k", type=_positive, nargs="+", default=[1, 2, 4, 8], help="children per node (1 2 4 8)")
    theory.add_argument("--samples", type=_positive, default=1000,
                        help="draws that estimate recursive_distinct on large vocabularies (1000)")  # fmt: skip
    return top


def _positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, got {text}")
    return value


def _minutes(text):
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number > 0, got {text}")
    return value


def _temperature(text):
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number >= 0, got {text}")
    return value


def info():
    """The output of `info`: versions, backends and why others are missing, schemes."""
    facts = build_info()
    cuda = f"{facts['cuda']} ({', '.join(facts['architectures'])})" if facts["cuda"] else "not in this build"
    lines = [
        f"specsample {facts['version']}",
        f"  streams    version {facts['stream_version']}",
        f"  torch      {facts['torch_running']} (built against {facts['torch_built'] or 'none: no compiled kernels'})",
        f"  cuda       {cuda}",
        f"  cpu        {facts['cpu'] or 'no compiled kernels'}, {facts['threads']} threads",
        f"  devices    {', '.join(_devices())}",
        "backends",
    ]
    lines += [f"  {name:<10} available" for name in facts["backends"]]
    lines += [f"  {name:<10} not available: {why}" for name, why in facts["unavailable"].items()]
    lines += ["schemes", f"  {'name':<10} {'family':<18} {'drafts':<10} {'trees':<6} {'backends':<22} paper"]
    for card in schemes().values():
        row = f"  {card.name:<10} {card.family:<18} {card.draft_kind:<10} {'yes' if card.trees else 'no':<6}"
        lines.append(f"{row} {', '.join(card.backends):<22} {card.paper}")
    return "\n".join(lines)


def _devices():
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ["cpu"] + [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(count)]


def bench(arguments):
    """Run benchmarks/cpu/run.py of the source tree with `arguments`."""
    root = Path(__file__).resolve().parents[2]
    script = root / "benchmarks" / "cpu" / "run.py"
    if not script.is_file():
        print(f"specsample bench: the benchmarks are not installed; they are part of the source tree ({script})",
              file=sys.stderr)  # fmt: skip
        return 1
    before = sys.argv, sys.path[:]
    sys.argv, sys.path[:] = [str(script), *arguments], [str(root), *sys.path]
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    finally:
        sys.argv, sys.path[:] = before
    return 0
