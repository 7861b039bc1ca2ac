"""What is measured, and the programs that measure it, run from the root: `python -m benchmarks.cpu.run`. Not installed."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
