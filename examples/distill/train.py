"""Fit the student to the target's laws, and keep the best checkpoint."""

import json
import math
import os
import random
import threading
import time

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from student import load_student, new_student, own_parameters, saved_parameters

from .texts import Texts, measure


def loss_gradient(hidden, target_hidden, totals, head, variation):
    """The gradient with respect to `hidden` of the loss, summed over tokens, and the summed acceptance.

    The loss is (1 - variation) KL(target || draft) + variation 2 TV(target, draft).  Acceptance is 1 - TV.  KL learns
    faster from far away; TV is what matters in the end.  The gradient is written out, in blocks that stay in the cache,
    because autograd over [tokens, head] matrices would spend more time on memory than the layers take to compute.
    """
    gradient, accepted = torch.empty_like(hidden), 0.0
    for n in range(0, len(hidden), 256):
        block = slice(n, n + 256)
        target = F.linear(target_hidden[block], head).sub_(totals[block, None]).exp_()
        draft = F.linear(hidden[block], head).softmax(-1)
        accepted += torch.minimum(target, draft).sum().item()
        by_logit = torch.where(draft < target, draft, 0)  # TV decreases only where the draft is below the target
        by_logit.sub_(draft * by_logit.sum(-1, keepdim=True)).mul_(-2 * variation)
        by_logit.addcmul_(draft, target.sum(-1, keepdim=True), value=1 - variation).sub_(target, alpha=1 - variation)
        gradient[block] = by_logit @ head
    return gradient, accepted


def start_student(target, layers, head, sources):
    """A student initialised from the target's layers `sources` and its last norm."""
    student = new_student(target, layers, head)
    for layer, source in zip(student.model.layers, sources):
        layer.load_state_dict(target.model.layers[source].state_dict())
    student.model.norm.load_state_dict(target.model.norm.state_dict())
    return student


TRAINED = "student.safetensors"  # in the work folder, 16 bits per weight


def save_student(path, student, facts, quantised=None):
    """Write the student's own weights, in bfloat16 or as quantised by quantise.py, with `facts` about it in the file's metadata."""
    weights = saved_parameters(student, quantised)
    facts = {
        "base_model": "SmolLM2-135M-Instruct",
        "layers": student.config.num_hidden_layers,
        "hidden_size": student.config.hidden_size,
        "head": student.lm_head.weight.shape[0],
        "date": time.strftime("%Y-%m-%d"),
        **facts,
    }
    save_file(weights, str(path) + ".part", metadata={"student": json.dumps(facts)})
    os.replace(str(path) + ".part", path)


def train(args, target):
    """Distil the target into the student; the checkpoint with the best held-out acceptance is kept."""
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    texts, held_out = Texts(sorted(args.work.glob("train_*.safetensors"))), Texts([args.work / "held_out.safetensors"])
    if args.resume:
        student = load_student(args.resume, target)
    else:
        student = start_student(target, len(args.sources), args.head, args.sources)
    own = list(own_parameters(student).values())
    groups = [
        {"params": [value for value in own if value.ndim == 2], "weight_decay": 0.01},
        {"params": [value for value in own if value.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.95), fused=True)
    steps = math.ceil(args.epochs * math.ceil(len(texts.ids) / args.batch))
    print(f"train: {texts.tokens()} tokens, {steps} steps of {args.batch} texts", flush=True)
    run = {"step": 0, "seen": 0, "smooth": 0.0, "best": 0.0, "batches": [], "start": time.time()}
    lock = threading.Lock()

    def work():
        """One worker: takes the newest weights, computes the gradient on its own core, and applies it.

        One thread per worker and no barrier between workers: on a machine that also does other work this is several times
        faster than one step spread over all cores, where each operation waits for the slowest core.  A gradient may be older
        than the weights by a step or two, which does no harm, but runs are not bitwise reproducible.
        """
        torch.set_num_threads(1)
        copy = start_student(target, len(student.model.layers), args.head, [])
        mine = list(own_parameters(copy).values())
        while True:
            with lock:
                # `--minutes` limits the run on a busy machine and still lets the rate decay completely.
                done = run["step"] / steps
                if args.minutes:
                    done = max(done, (time.time() - run["start"]) / 60 / args.minutes)
                if done >= 1:
                    return
                run["batches"] = run["batches"] or texts.epoch(rng, args.batch)
                rows = run["batches"].pop()
                with torch.no_grad():
                    torch._foreach_copy_(mine, own)
            ids, predicts, target_hidden, totals = texts.batch(rows)
            hidden = copy.model(input_ids=ids, use_cache=False).last_hidden_state[predicts]
            variation = args.variation[0] + (args.variation[1] - args.variation[0]) * done
            with torch.no_grad():
                gradient, accepted = loss_gradient(hidden.detach(), target_hidden, totals, copy.lm_head.weight, variation)
            hidden.backward(gradient / len(hidden))
            torch.nn.utils.clip_grad_norm_(mine, 1.0)
            with lock:
                rate = args.rate * min(1, (run["step"] + 1) / 50) * (1 - done)
                for master, part in zip(own, mine):
                    master.grad, part.grad = part.grad, None
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
                run["step"] += 1
                run["seen"] += len(hidden)
                weight = max(0.02, 1 / run["step"])
                run["smooth"] += weight * (accepted / len(hidden) - run["smooth"])
                spent = time.time() - run["start"]
                if run["step"] % 20 == 0:
                    print(
                        f"train: step {run['step']}/{steps} ({done:.0%}), acceptance {run['smooth']:.4f}, "
                        f"rate {rate:.1e}, {run['seen'] / spent:.0f} tokens/s, {spent / 60:.1f} min",
                        flush=True,
                    )
                if run["step"] % args.check == 0:
                    checkpoint(args, student, held_out, run)

    workers = [threading.Thread(target=work) for _ in range(args.workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    checkpoint(args, student, held_out, run)


def checkpoint(args, student, held_out, run):
    """Save the student if its acceptance on part of the held-out texts is the best so far."""
    acceptance = measure(student, held_out, limit=32)["acceptance_t1"]
    run["best"] = max(run["best"], acceptance)
    print(f"train: step {run['step']}, held-out acceptance {acceptance:.4f} (best {run['best']:.4f})", flush=True)
    if acceptance == run["best"]:
        save_student(args.work / TRAINED, student, {"acceptance_t1": acceptance})
