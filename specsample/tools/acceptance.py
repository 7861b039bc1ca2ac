"""`python -m specsample acceptance`: each scheme's acceptance rate on a text, from both models' distributions at every position.

Nothing is decoded and nothing is drawn: at every position of the text, the acceptance of one node is computed from the two
distributions. So it shows, before any experiment, which scheme and how many children suit a pair of models.
"""

import json
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from ..api import log_probs
from ..errors import expect
from ..sampling import Sampling
from .pair import load_pair, logits_of, need


def arguments(parser, positive, temperature):
    """Add the command's arguments."""
    parser.add_argument("text", nargs="?", type=Path, help="a text file (UTF-8)")
    parser.add_argument("--target", help="name or path of the target (the demo's pair)")
    parser.add_argument("--draft", help="name or path of the draft model")
    parser.add_argument("--logits", type=Path, metavar="FILE",
                        help="instead of text and models: .npz, .safetensors or .pt: target [T, V], draft [T, V']")  # fmt: skip
    parser.add_argument("-k", type=positive, nargs="+", default=[1, 2, 4, 8], help="children per node (1 2 4 8)")
    parser.add_argument("--positions", type=positive, default=256, help="use at most the first N positions (256)", metavar="N")
    for name in ("", "draft-"):
        whose = "draft's" if name else "target's"
        default = "the target's" if name else None
        parser.add_argument(f"--{name}temperature", type=temperature, help=f"the {whose} ({default or 1})")
        parser.add_argument(f"--{name}top-k", type=int, help=f"the {whose} ({default or 'off'})")
        parser.add_argument(f"--{name}top-p", type=float, help=f"the {whose} ({default or 'off'})")
        parser.add_argument(f"--{name}min-p", type=float, help=f"the {whose} ({default or 'off'})")
    parser.add_argument("--samples", type=positive, default=64,
                        help="draws per position for recursive_distinct beyond two children (64)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of these draws")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")


def main(options):
    """Run the command. options: the namespace of cli.parser. -> exit status"""
    try:
        need("numpy")
        sampling, draft_sampling = samplings(options)
        if options.logits is None:
            expect(options.text is not None, "text", "a text file, or --logits", "neither")
            ids, name, rows = _of_models(options)
        else:
            expect(options.text is None and options.target is None and options.draft is None, "--logits",
                   "no text and no models beside it", "both")  # fmt: skip
            pair = read_logits(options.logits)
            count, name = min(len(pair[0]), options.positions), str(options.logits)
            rows = zip(*(x[:count].split(64) for x in pair))
            ids = range(count)
        curves = node_acceptance(rows, len(ids), options.k, sampling, draft_sampling, samples=options.samples, seed=options.seed)
    except (ValueError, ImportError, OSError) as error:
        print(f"specsample acceptance: {error}", file=sys.stderr)
        return 1
    result = as_json(curves, options.k, name, sampling, draft_sampling)
    print(as_text(result, curves))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def samplings(options):
    """(target's, draft's) Sampling from the arguments; the draft's settings default to the target's."""
    given = [getattr(options, name) for name in Sampling._fields]
    target = Sampling(*(x if value is None else value for x, value in zip(Sampling(), given)))
    given = [getattr(options, f"draft_{name}") for name in Sampling._fields]
    return target, Sampling(*(x if value is None else value for x, value in zip(target, given)))


def _of_models(options):
    """(token ids, name, iterator of logit chunks) for the text"""
    text = options.text.read_text()
    pair = load_pair(options.target, options.draft)
    ids = pair.tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids[0, : options.positions]
    expect(len(ids) > 0, "text", "at least one token", "an empty text")
    return ids, f"{options.text}, {pair.name}", zip(logits_of(pair.target, ids), logits_of(pair.draft, ids))


def read_logits(path):
    """(target [T, V], draft [T, V']) from .npz or .safetensors (names target and draft) or .pt (a dict, or two tensors)"""
    try:
        if path.suffix == ".npz":
            import numpy as np

            with np.load(path) as file:
                values = {name: torch.from_numpy(file[name]) for name in file.files}
        elif path.suffix == ".safetensors":
            from safetensors.torch import load_file

            values = load_file(path)
        else:
            values = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"--logits: cannot read {path}: {error}") from error
    if isinstance(values, dict):
        missing = {"target", "draft"} - set(values)
        expect(not missing, "--logits", "arrays named target and draft", f"{', '.join(sorted(values)) or 'none'}")
        values = values["target"], values["draft"]
    good = isinstance(values, (tuple, list)) and len(values) == 2 and all(isinstance(x, torch.Tensor) for x in values)
    expect(good, "--logits", "two arrays, target and draft", type(values).__name__)
    for name, x in zip(("target", "draft"), values):
        good = x.dim() == 2 and x.shape[0] > 0 and x.shape[1] > 0 and x.is_floating_point()
        expect(good, f"--logits {name}", "floats [T, V]", f"{x.dtype} {tuple(x.shape)}")
    expect(len(values[0]) == len(values[1]), "--logits draft", f"T = {len(values[0])} as in target", len(values[1]))
    return tuple(values)


def laws(target_logits, draft_logits, sampling, draft_sampling):
    """(target, draft) float64 [n, V], padded to one width: an id missing from one of them has probability 0 there."""
    width = max(target_logits.shape[1], draft_logits.shape[1])
    out = []
    for name, logits, settings in (("target", target_logits, sampling), ("draft", draft_logits, draft_sampling)):
        expect(bool((logits > -torch.inf).any(-1).all()), f"{name} logits", "a finite one in each row", "a row without")
        if logits.dtype == torch.float64:
            logits = logits.float()
        law = log_probs(logits.contiguous(), sampling=settings).double().exp()
        law = torch.nn.functional.pad(law / law.sum(-1, keepdim=True), (0, width - law.shape[1]))
        out.append(law.numpy())
    return tuple(out)


def node_acceptance(rows, total, ks, sampling=Sampling(), draft_sampling=None, *, schemes=None, samples=64, seed=0):
    """Acceptance of every scheme (or of `schemes`) at each of T positions: {scheme: theory.Curve of [T, len(ks)]}

    rows: iterable of (target logits [n, V], draft logits [n, V']); total: the number of rows, for the progress bar
    """
    from ..theory.curves import Curve, acceptance_curves

    draft_sampling = sampling if draft_sampling is None else draft_sampling
    parts, count = [], 0

    def one(target, draft, number):
        return acceptance_curves(target, draft, ks, schemes=schemes, samples=samples, seed=(seed, number))

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool, progress(total) as bar:
        for chunk in rows:
            target, draft = laws(*chunk, sampling, draft_sampling)
            numbers = range(count, count + len(target))
            torch.set_num_threads(1)  # one row per thread: threads within a row would only wait for each other
            try:
                for curves in pool.map(one, target, draft, numbers):
                    parts.append(curves)
                    bar.update()
            finally:
                torch.set_num_threads(threads)
            count += len(target)
    return {name: Curve(*map(_stacked, zip(*(part[name] for part in parts)))) for name in parts[0]}


def _stacked(rows):
    import numpy as np

    return np.stack(rows)


class NoBar:
    """A stand-in for tqdm where it is not installed."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self):
        pass


def progress(total):
    """A progress bar on stderr."""
    try:
        from tqdm import tqdm
    except ImportError:
        return NoBar()
    return tqdm(total=total, desc="positions", unit="position", file=sys.stderr, leave=False)


def as_json(curves, ks, name, sampling, draft_sampling):
    """Means over the positions, as numbers and text only. half_width_95: of the mean, treating positions as independent samples."""
    from ..theory.table import summary

    clean = lambda x: [None if v != v else float(f"{v:.6g}") for v in x.tolist()]
    means = summary(curves)
    positions = len(curves["token"].value)
    return {
        "of": name,
        "positions": positions,
        "sampling": sampling._asdict(),
        "draft_sampling": draft_sampling._asdict(),
        "k": list(ks),
        "acceptance": {scheme: clean(mean.value) for scheme, mean in means.items()},
        "half_width_95": {scheme: clean(1.96 * c.value.std(0) / positions**0.5) for scheme, c in curves.items()},
        "standard_error": {scheme: clean(mean.error) for scheme, mean in means.items() if mean.error.max() > 0},
        "optimum_less_optimal": clean(means["optimum"].value - means["optimal"].value),
    }


def as_text(result, curves):
    """The table."""
    from ..theory.table import lines, summary

    settings, off = [], Sampling()._asdict()
    for which in ("sampling", "draft_sampling"):
        filters = [f", {name} {x:g}" for name, x in result[which].items() if name != "temperature" and x != off[name]]
        settings.append(f"T = {result[which]['temperature']:g}" + "".join(filters))
    head = [f"mean acceptance of a node over {result['positions']} positions of {result['of']}",
            f"target at {settings[0]}, draft at {settings[1]}"]  # fmt: skip
    width = max(x for row in result["half_width_95"].values() for x in row if x is not None)
    tail = f"  As a sample of such texts the means are known to ±{width:.3f} (95 %); their differences are more certain."
    return "\n".join([*head, *lines(summary(curves), result["k"]), tail])
