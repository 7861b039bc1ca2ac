"""One wheel for every torch, joined from wheels for the CPU and for one CUDA each: the published one.

    python release/join.py dist/specsample-0.1.0+cpu-*.whl dist/specsample-0.1.0+cu124-*.whl dist/specsample-0.1.0+cu130-*.whl

The CPU's wheel is the whole package; only the compiled part of the others is taken, as specsample/_C_cu12.abi3.so and so on, of
which specsample/extension.py loads the one for torch's CUDA. One per major version of CUDA suffices, since its minor versions run
each other's programs. Nobody chooses, so nobody chooses wrong; and an index that rejects local versions (+cu130) accepts it.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def tool(*arguments):
    subprocess.run([sys.executable, "-m", "wheel", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def unpacked(wheel, folder):
    tool("unpack", wheel, "--dest", folder)
    (found,) = folder.iterdir()
    return found


def packed(package, local, out):
    """The wheel of an unpacked one, with `local` ("", "+cu130") as the local part of its version. -> its path"""
    (info,) = package.glob("*.dist-info")
    metadata = info / "METADATA"
    metadata.write_text(re.sub(r"^(Version: [^+\n]+)\+\w+$", rf"\1{local}", metadata.read_text(), count=1, flags=re.M))
    info.rename(info.with_name(re.sub(r"\+\w+", local, info.name)))
    with tempfile.TemporaryDirectory() as made:
        tool("pack", package, "--dest-dir", made)
        (wheel,) = Path(made).iterdir()
        Path(out).mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy2(wheel, out))


def join(wheels, out):
    """-> the path of the joined wheel"""
    local = {re.search(r"\+(\w+)-", path.name).group(1): path for path in map(Path, wheels)}
    if "cpu" not in local or len({path.name.partition("+")[0] for path in local.values()}) != 1:
        sys.exit("expected wheels of one version, among them one for the CPU")
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        package = unpacked(local.pop("cpu"), scratch / "cpu")
        for name, path in sorted(local.items()):
            (library,) = unpacked(path, scratch / name).glob("specsample/_C.*.so")
            target = package / "specsample" / library.name.replace("_C.", f"_C_cu{name[2:-1]}.")
            if target.exists():
                sys.exit(f"two wheels for one major version of CUDA: {name}")
            shutil.copy2(library, target)
        return packed(package, "", out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", nargs="+")
    parser.add_argument("--out", default=str(ROOT / "dist"))
    asked = parser.parse_args()
    print(join(asked.wheels, asked.out))
