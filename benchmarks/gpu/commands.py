"""Child processes of `make gpu`: their output goes to files as it is produced, and to the terminal; each has a time-out.

A child writes to its file itself, so its output is kept whether it or this process ends.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import ROOT

KILLED = 5.0  # seconds within which a killed child must be gone


class Command(NamedTuple):
    arguments: list
    environment: dict
    limit: float  # seconds after which it is killed
    judge: Callable | None = None  # (status, its output) -> what is wrong, or None; default: any status other than 0 is wrong


class Child(NamedTuple):
    name: str
    command: Command
    process: Any
    output: Any  # its file, read up to what has been shown
    path: Path
    began: float


def say(message):
    print(f"[gpu] {message}", flush=True)


def execute(commands, logs, left=float("inf")):
    """Runs {name: Command} concurrently, for at most `left` seconds. -> {name: what went wrong}"""
    logs.mkdir(parents=True, exist_ok=True)
    children, wrong = [], {}
    try:
        for name, command in commands.items():
            children.append(start(name, command, logs))
        running = list(children)
        while running:
            for child in list(running):
                ended = child.process.poll() is not None  # asked before the last look at its output
                show(child, last=ended, alone=len(commands) == 1)
                why = None
                if ended:
                    why = verdict(child)
                elif time.monotonic() - child.began > min(child.command.limit, left):
                    why = f"killed after {time.monotonic() - child.began:.0f} s{kill(child)}"
                    show(child, last=True, alone=len(commands) == 1)
                else:
                    continue
                running.remove(child)
                if why:
                    wrong[child.name] = why
                    say(f"FAILED: {child.name}: {why}; {child.path}")
            time.sleep(0.05)
    finally:
        for child in children:
            if child.process.poll() is None:
                kill(child)
            child.output.close()
    return wrong


def start(name, command, logs):
    path = logs / (re.sub(r"[^a-zA-Z0-9]+", "-", name).strip("-") + ".log")
    shown = " ".join(f"{k}={v}" for k, v in command.environment.items())
    say(f"{name}, at most {command.limit:.0f} s: {shown} {' '.join(map(str, command.arguments))}")
    # On abort, a hanging Python prints where it is.
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", **command.environment}
    with open(path, "wb") as file:
        process = subprocess.Popen(
            command.arguments, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            preexec_fn=os.setpgrp,  # so that its own children are killed with it
        )  # fmt: skip
    return Child(name, command, process, open(path, "rb"), path, time.monotonic())


def show(child, last, alone):
    """Prints its new output, up to the last complete line."""
    text = child.output.read()
    if not last:
        whole = text.rfind(b"\n") + 1
        child.output.seek(whole - len(text), os.SEEK_CUR)
        text = text[:whole]
    for line in text.decode(errors="replace").splitlines():
        print(line if alone else f"{child.name} | {line}", flush=True)


def verdict(child):
    status = child.process.returncode
    if child.command.judge:
        return child.command.judge(status, child.path.read_text(errors="replace"))
    return f"status {status}" if status else None


def kill(child):
    """… and everything it has started. -> more to report about it"""
    for number, patience in ((signal.SIGABRT, 2.0), (signal.SIGKILL, KILLED)):
        try:
            os.killpg(child.process.pid, number)
            child.process.wait(patience)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    else:
        if child.process.poll() is None:
            return ", and it does not end"
    try:
        os.killpg(child.process.pid, signal.SIGKILL)  # those of its group that ignored the first signal
    except (ProcessLookupError, PermissionError):
        pass
    return ""
