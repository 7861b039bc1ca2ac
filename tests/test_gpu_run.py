"""The steps of `make gpu` without a GPU: what is run, in which order and in what time, and that a hang loses nothing."""

import contextlib
import importlib.util
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import fake_gpu
import native
import pytest
import torch

from benchmarks import ROOT
from specsample import triton

MODULES = ("commands", "races", "clock", "cases", "peers", "report", "bench", "run")  # of benchmarks.gpu
SMOKE = [*(f"teams of {n}" for n in (1, 2, 4, 8)), "ahead", "programmatic launch", "a captured graph"]
WARM = [f"the warm-up of triton, {name}, {dtype}" for name in triton.SUPPORTED for dtype in ("float32", "bfloat16")]


@pytest.fixture
def bench():
    """The benchmark's modules, by name"""
    found = {f"gpu_{name}": importlib.import_module(f"benchmarks.gpu.{name}") for name in MODULES}
    return SimpleNamespace(**found, **{name: importlib.import_module(f"benchmarks.{name}") for name in ("competitors", "harness")})


def run(bench, arguments, ran):
    """main() of gpu.py with a fake torch and commands that are recorded instead of run."""
    noted = lambda commands, *_: ran.append(commands) or {}
    return bench.gpu_run.main(arguments, fake_gpu.fake_torch(), noted, None, lambda tool: tool)


def test_commands_of_make_gpu(bench):
    """What is run and in which order; the files, options and names used exist."""
    ran = []
    said = run(bench, ["--quick"], ran)
    assert said == 0 and [list(commands) for commands in ran] == [
        ["the build"], ["the extension"], SMOKE, ["the tests on cuda"], ["compute-sanitizer memcheck"], WARM,
        ["the tests on triton"],
    ]  # fmt: skip
    build = ran[0]["the build"]
    assert build.environment == {
        "SPECSAMPLE_CUDA": "1", "SPECSAMPLE_CUDA_ARCHS": "9.0", "SPECSAMPLE_REQUIRE_EXTENSION": "1", "NVCC_APPEND_FLAGS": "-lineinfo",
    }  # fmt: skip
    for command in (c for commands in ran for c in commands.values()):
        files = [a for a in command.arguments if a.endswith(".py") and a != sys.executable]
        modules = [b for a, b in zip(command.arguments, command.arguments[1:]) if a == "-m"]
        assert all((ROOT / a).exists() for a in files) and all(importlib.util.find_spec(name) for name in modules)
    assert all(command.limit == 30 for commands in ran[1:3] for command in commands.values())
    smoke = ran[2]
    assert [smoke[f"teams of {n}"].environment["SPECSAMPLE_TEAM"] for n in (1, 2, 4, 8)] == ["1", "2", "4", "8"]
    assert smoke["programmatic launch"].environment["SPECSAMPLE_EARLY"] == "1" and "--graph" in smoke["a captured graph"].arguments
    for command, backend in ((ran[3]["the tests on cuda"], "cuda"), (ran[6]["the tests on triton"], "triton")):
        assert command.arguments[-2:] == ["-k", f"{backend}- or {backend}]"] and "--maxfail=1" in command.arguments
        assert float(command.environment["SPECSAMPLE_TEST_SECONDS"]) > 0 and any(a.startswith("tests/") for a in command.arguments)
    memcheck = ran[4]["compute-sanitizer memcheck"]
    assert memcheck.environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1" and memcheck.arguments[-1] == "--few"
    assert memcheck.arguments[1:5] == ["--tool", "memcheck", "--report-api-errors", "no"]
    assert (
        "refuses" in memcheck.judge(1, "Error: Device not supported.\n") and memcheck.judge(9, "") and memcheck.judge(0, "") is None
    )
    others = bench.gpu_run.sanitizers("compute-sanitizer", False)
    assert all("--report-api-errors" not in others[f"compute-sanitizer {t}"].arguments for t in ("racecheck", "synccheck"))
    whole = bench.gpu_run.tests(False, "cuda")["the tests on cuda"]
    assert "tests/test_chi_square.py" in whole.arguments
    assert all((ROOT / f"tests/{name}.py").exists() for name in bench.gpu_run.TESTS)
    ran.clear()
    run(bench, ["--quick", "--no-build"], ran)
    assert list(ran[0]) == ["the extension"]
    assert list(bench.gpu_run.smoke("8.6")[1]) == ["teams of 1", "ahead", "programmatic launch", "a captured graph"]


def test_the_warm_up_compiles_what_tests_call(bench, capsys, monkeypatch):
    """The program that each process runs, with its calls recorded."""
    calls = []
    monkeypatch.setattr(triton, "warmup", lambda vocab, **given: calls.append((vocab, given)) or {given["schemes"][0]: 1.26})
    for name, hows in (("block", [{}, {"packed": True}]), ("optimal", [{"tree": True, "position": 1}])):
        calls.clear()
        monkeypatch.setattr(sys, "argv", ["-c", name, "bfloat16"])
        exec(bench.gpu_run.WARM, {})
        like = {"schemes": (name,), "dtype": torch.bfloat16}
        assert calls == [(vocab, like | how) for how in hows for vocab in (100, 50_000)]
    assert "50000 tree position 1.3 s" in capsys.readouterr().out
    command = bench.gpu_run.warm()["the warm-up of triton, optimal, bfloat16"]
    told = subprocess.run([*command.arguments[:2], "from benchmarks.gpu.run import layouts; print(layouts('block'))"], capture_output=True, text=True,
                          env={**os.environ, **command.environment})  # fmt: skip
    assert told.stdout == "[{}, {'packed': True}]\n", told.stderr


def test_a_build_with_older_setuptools(bench, tmp_path):
    """The folder it is built in has the sources but no pyproject.toml, and the extension goes to the package."""
    assert bench.gpu_run.linked(tmp_path, "82.0.1") is None
    folder = bench.gpu_run.linked(tmp_path / "source", "70.2.0")
    assert sorted(p.name for p in folder.iterdir()) == ["csrc", "setup.py", "specsample"]
    assert (folder / "specsample/_C.abi3.so").resolve().parent == (ROOT / "specsample").resolve()
    arguments = [*bench.gpu_run.build("9.0", bench.gpu_run.linked(folder, "70.2.0"))["the build"].arguments[:-2], "--name"]
    done = subprocess.run(arguments, capture_output=True, text=True, env={**os.environ, "SPECSAMPLE_NO_EXTENSION": "1"})
    assert done.returncode == 0 and done.stdout.split()[-1].lower() == "unknown", done.stderr


def test_what_is_run_is_what_is_meant(bench):
    """The selection includes the cases on the GPU's backend and none on the emulator; the sanitized calls are wide and packed."""
    command = bench.gpu_run.tests(True, "cuda")["the tests on cuda"].arguments
    chosen = [a for a in command if a != "tests/test_same_integers.py" and a not in ("-v", "-rs")]
    count = chosen.index("-n") if "-n" in chosen else None
    chosen = chosen if count is None else chosen[:count] + chosen[count + 2 :]
    collected = subprocess.run([*chosen, "--collect-only"], capture_output=True, text=True, cwd=ROOT)
    names = [line for line in collected.stdout.splitlines() if "::" in line]
    assert len(names) > 60 and not any("cpu" in name.split("[")[1] or "triton" in name for name in names), collected.stdout[-2000:]
    for what in ("deterministic_draft", "filtered_rows", "packed_calls", "test_trees", "captured_graph"):
        assert sum(what in name for name in names) >= 4, what
    smoke = importlib.import_module("benchmarks.gpu.smoke")
    calls = list(smoke.calls("reference", 60, few=True))
    schemes = {args["scheme"] for _, _, args in calls if "scheme" in args}
    assert schemes == set(bench.gpu_cases.ss.schemes()) and sum("cu_rows" in args for _, _, args in calls) == 3
    assert sum(args.get("draft_logits", 0) is None for _, _, args in calls) == 2


def test_the_smoke_program_sees_wrong_tokens(bench, monkeypatch, capsys):
    smoke = importlib.import_module("benchmarks.gpu.smoke")
    arguments = ["--backend", "cuda on cpu", "--vocabulary", "300", "--few", "--only", "token"]
    monkeypatch.setattr(smoke.cuda_on_cpu, "load", lambda: None)
    monkeypatch.setitem(smoke.backends.BACKENDS, "cuda on cpu", smoke.backends.BACKENDS["reference"]._replace(schemes=("token",)))
    assert smoke.main(arguments) == 0 and "6 calls, wrong: none" in capsys.readouterr().out
    real = smoke.ss.verify

    def shifted(*args, backend, **more):
        verdict = real(*args, backend=backend, **more)
        return verdict if backend == "cpu" else verdict._replace(tokens=verdict.tokens + 1)

    monkeypatch.setattr(smoke.ss, "verify", shifted)
    assert (
        smoke.main(arguments) == 1
        and "wrong: token, filtered, V = 300, token, packed, V = 300, token, det" in capsys.readouterr().out
    )


class Clock:
    """Time taken by commands: their expected seconds, or up to their limits"""

    def __init__(self, bench, hang):
        self.now, self.bench, self.hang, self.ran = 0.0, bench, hang, []

    def __call__(self):
        return self.now

    def execute(self, commands, logs, left):
        name = "smoke" if "a captured graph" in commands else next(iter(commands))
        name = name.split(",")[0]
        self.ran.append(name)
        longest = max(command.limit for command in commands.values())
        self.now += min(left, longest if name in self.hang else self.bench.gpu_run.EXPECTED.get(name, 5))
        return dict.fromkeys(commands, "killed") if name in self.hang else {}


@pytest.mark.parametrize(
    "hang", [(), ("the tests on cuda", "compute-sanitizer memcheck", "the tests on triton"), ("smoke",)], ids=str
)
def test_the_quick_run_takes_four_minutes(bench, tmp_path, capsys, hang):
    """A rehearsal: all steps take their expected time; then every step hangs."""
    clock = Clock(bench, hang)
    rehearse = lambda: bench.gpu_run.main(["--quick"], fake_gpu.fake_torch(), clock.execute, None, lambda tool: tool, clock)
    if hang == ("smoke",):
        with pytest.raises(SystemExit, match="a captured graph: killed; nothing else was run"):
            rehearse()
        assert clock.ran == ["the build", "the extension", "smoke"]
        return
    said = rehearse()
    assert clock.now <= 240
    if hang:
        assert all(name in said for name in hang) and clock.now > 235
    else:
        assert said == 0 and list(bench.gpu_run.EXPECTED) == sorted(
            bench.gpu_run.EXPECTED, key=bench.gpu_run.EXPECTED.get, reverse=True
        )
    shown = capsys.readouterr().out
    assert "expected: the build 70 s" in shown and f"{clock.now:.0f} s in all" in shown


def test_failures_of_steps_are_told(bench, tmp_path):
    def failing(*names):
        return lambda commands, *_: {name: "status 1" for name in commands if name in names}

    main = lambda execute, *more: bench.gpu_run.main(["--quick", *more], fake_gpu.fake_torch(), execute, None, lambda tool: tool)
    with pytest.raises(SystemExit, match="the build: status 1; nothing else"):
        main(failing("the build"))
    with pytest.raises(SystemExit, match="teams of 8: status 1; nothing else"):
        main(failing("teams of 8"), "--no-build")
    said = main(failing("the tests on cuda", "compute-sanitizer memcheck"), "--no-build")
    assert said == "[gpu] failed: the tests on cuda: status 1; compute-sanitizer memcheck: status 1"


# -- child processes -----------------------------------------------------------------------------------------------------


def command(bench, code, limit=30.0, judge=None):
    return bench.gpu_run.Command([sys.executable, "-c", code], {}, limit, judge)


def test_commands_run_side_by_side(bench, tmp_path, capfd):
    code = "import sys; print('here'); sys.exit({})"
    commands = {f"status {n}": command(bench, code.format(n)) for n in (0, 3)}
    assert bench.gpu_commands.execute(commands, tmp_path) == {"status 3": "status 3"}
    out = capfd.readouterr().out
    assert "status 0 | here\n" in out and "status 3 | here\n" in out and "FAILED: status 3: status 3; " in out
    judged = {
        "judged": command(bench, "print('fine'); raise SystemExit(9)", judge=lambda status, text: None if "fine" in text else "?")
    }
    assert bench.gpu_commands.execute(judged, tmp_path) == {}


def test_a_hang_loses_nothing(bench, tmp_path, capfd):
    """Output, with a newline or not, is in the file and on the terminal; so is where the process hangs; its children end with it."""
    child = "import subprocess, sys, time; p = subprocess.Popen(['sleep', '60']); print('child', p.pid)"
    code = f"{child}; sys.stdout.write('half a line'); time.sleep(60)"
    began = time.monotonic()
    wrong = bench.gpu_commands.execute({"hangs": command(bench, code, 2.0), "ends": command(bench, "print('well')")}, tmp_path)
    assert list(wrong) == ["hangs"] and "killed after 2 s" in wrong["hangs"] and time.monotonic() - began < 15
    kept, out = (tmp_path / "hangs.log").read_text(), capfd.readouterr().out
    for text in (kept, out):
        assert "half a line" in text and "Fatal Python error: Aborted" in text and "most recent call first" in text
    assert "ends | well" in out
    pid = int(kept.split()[1])
    with contextlib.suppress(FileNotFoundError):
        assert Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z"


def test_output_is_shown_while_it_comes(bench, tmp_path, capfd):
    """… and written to the file: the child ends only once a thread has seen both."""
    seen, flag = [], tmp_path / "go on"

    def watch():
        for _ in range(400):
            log = tmp_path / "talks.log"
            if log.exists() and "ready" in log.read_text():
                time.sleep(0.3)
                seen.append(capfd.readouterr().out)
                break
            time.sleep(0.05)
        flag.write_text("")

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = f"import os, time; print('ready')\nwhile not os.path.exists({str(flag)!r}): time.sleep(0.05)"
    assert bench.gpu_commands.execute({"talks": command(bench, code)}, tmp_path) == {}
    watcher.join()
    assert seen and "ready" in seen[0].splitlines()


def test_a_hanging_test_names_itself(tmp_path):
    (tmp_path / "test_hang.py").write_text(
        "import time\nfrom conftest import pytest_runtest_protocol\n\n\ndef test_quick():\n    pass\n\n\n"
        "def test_hangs():\n    time.sleep(60)\n"
    )
    (tmp_path / "plugin.py").write_text("from conftest import pytest_runtest_protocol  # noqa: F401\n")
    env = {**os.environ, "SPECSAMPLE_TEST_SECONDS": "1.5", "PYTHONPATH": f"{tmp_path}:{native.PYTHONPATH}"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "plugin", "-p", "no:cacheprovider", "test_hang.py"], cwd=tmp_path, env=env,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1 and "timed out: test_hang.py::test_hangs" in done.stderr and "in test_hangs" in done.stderr


RACE = """========= COMPUTE-SANITIZER
========= Error: Race reported between {} access at void specsample::verify_kernel(specsample::VerifyArgs)+0x2f0 in {}
=========     and {} access at void specsample::verify_kernel(specsample::VerifyArgs)+0x3f0 in {} [64 hazards]
=========     and {} access at void specsample::verify_kernel(specsample::VerifyArgs)+0x5a0 in {} [2 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
12 calls, wrong: none
"""


def test_races_that_are_meant_are_excused_by_name(bench):
    races = bench.gpu_races
    meant = races.deliberate()
    text = (races.CUDA / "block.h").read_text().splitlines()
    (read,) = (i + 1 for i, line in enumerate(text) if "volatile int*" in line)
    assert ("block.h", read) in meant and len(meant) < 12
    here, there = f"/some/where/csrc/cuda/block.h:{read}", "race_pass.h:150"
    judge = lambda *parts, status=9: races.judge(status, RACE.format(*parts))
    assert judge("Read", here, "Write", there, "Atomic", there) is None
    assert judge("Write", there, "Read", here, "Read", here) is None
    assert "1 races that are not meant" in judge("Write", there, "Read", here, "Read", there)
    assert "1 races that are not meant" in judge("Write", here, "Read", there, "Write", there)
    assert "1 races that are not meant" in judge("Read", "block.h:1", "Write", there, "Write", there)
    assert "not meant" in races.judge(9, RACE.replace(" in {}", "").format("Read", "Write", "Read"))  # built without lines
    clean = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n12 calls, wrong: none\n"
    assert races.judge(0, clean) is None and races.judge(1, clean) == "status 1"
    assert "did not come to its end" in races.judge(9, RACE.split("========= RACECHECK")[0])
    assert "did not come to its end" in races.judge(0, clean.replace("none", "token"))
    three = RACE.replace("SUMMARY: 1", "SUMMARY: 3").format("Read", here, "Write", there, "Write", there)
    assert "3 hazards, of which 1" in races.judge(9, three)


def test_without_a_gpu_it_says_so(bench, monkeypatch):
    torch = fake_gpu.fake_torch()
    monkeypatch.setattr(bench.gpu_run.os.path, "exists", lambda path: path == "/usr/local/cuda/bin/c++")
    with pytest.raises(SystemExit, match=r"not on the path: nvcc \(a build made elsewhere: --no-build\)"):
        bench.gpu_run.gpu_or_exit(torch, lambda tool: None)
    monkeypatch.undo()
    monkeypatch.setattr(bench.gpu_run.importlib.util, "find_spec", lambda name: None if name == "pytest" else name)
    with pytest.raises(SystemExit, match="has no pytest"):
        bench.gpu_run.gpu_or_exit(torch, lambda tool: tool)
    monkeypatch.undo()
    monkeypatch.setattr(bench.gpu_run.os.path, "exists", lambda path: False)
    with pytest.raises(SystemExit, match="not on the path: nvcc"):
        bench.gpu_run.gpu_or_exit(torch, lambda tool: None if tool == "nvcc" else tool)
    torch.cuda.is_available = lambda: False
    with pytest.raises(SystemExit, match="no CUDA device: torch.cuda.is_available"):
        bench.gpu_run.gpu_or_exit(torch)
    torch.version.cuda = None
    with pytest.raises(SystemExit, match="no CUDA device: torch 0.0 was built without CUDA"):
        bench.gpu_run.gpu_or_exit(torch)
