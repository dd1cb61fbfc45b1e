"""All benchmarks of quantization: python benchmarks/quantization.py --peers FOLDER --cases FOLDER   (four hours, idle machine)

The parts can be run by themselves; each has its docstring, goes on where it was stopped, and writes a table beside itself:

* quant_nets.py trains the networks that accuracy is judged on;
* quant_latency.py: ours beside NNCF's and ``quantize_static``'s files, on 14 networks (quant_latency.md);
* quant_accuracy.py: what int8 loses, ours beside theirs (quant_accuracy.md);
* quant_cost.py: time and memory of quantizing ResNet-50 (quant_cost.md);
* quant_rounding.py: weights of 2 to 4 bits, to the nearest and learned (quant_rounding.md);
* quant_training.py: training at 4 and 2 bits (quant_training.md).

``--peers`` is a virtual environment for the peers, made with pip where there is none; ``--cases`` has ``realdata.py``.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PARTS = {
    "nets": (),
    "latency": ("peers", "cases"),
    "accuracy": ("peers", "cases"),
    "cost": ("peers",),
    "rounding": (),
    "training": (),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--only", action="append", choices=PARTS)
    given = parser.parse_args()
    for part in given.only or PARTS:
        words = [word for name in PARTS[part] for word in (f"--{name}", str(getattr(given, name).absolute()))]
        print(f"quant_{part}.py", flush=True)
        subprocess.run([sys.executable, HERE / f"quant_{part}.py", *words], check=True)


if __name__ == "__main__":
    main()
