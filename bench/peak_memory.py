"""How much memory quantizing takes: a random checkpoint of a real shape, quantized in a child.

python bench/peak_memory.py [--shape 30b-a3b] [--layers 6] [--type Q4_K_M] [--folder DIR]

The default is 8.7 GB of bf16 in shards, written to DIR and removed at the end. Printed are the
child's peak of resident memory (VmHWM, Linux), with what Python and its modules take before the
first weight, and the rate.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from round_trip import arguments, shape_of

from quant.quantize import predict

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")]
from checkpoint_synthetic import write_synthetic  # noqa: E402

CHILD = """
import sys
from pathlib import Path
from quant.quantize import quantize

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])

before = peak()
source, out, recipe, threads = sys.argv[1:]
done = quantize(Path(source), Path(out), recipe, threads=int(threads))
print(before, peak(), done.file_bytes, done.seconds)
"""


def main() -> None:
    args = arguments(__doc__, layers=6).parse_args()
    hp = shape_of(args)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        source, out = Path(folder) / "source", Path(folder) / "out.gguf"
        n_bytes = write_synthetic(source, hp)
        print(f"{args.shape}, {hp.n_layers} layers: {n_bytes / 1e9:.2f} GB of bf16", flush=True)
        (expected,) = predict(source, args.type).file_bytes
        command = [sys.executable, "-c", CHILD, source, out, args.type, str(args.threads)]
        child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        before, peak, size, seconds = map(float, child.stdout.split())
        print(
            f"{args.type}: {size / 1e9:.2f} GB ({'as' if size == expected else 'NOT as'} predicted)"
            f", {seconds:.0f} s, {n_bytes / 1e6 / seconds:.0f} MB/s of input\n"
            f"peak {peak / 1e3:.0f} MB, of them {before / 1e3:.0f} MB before the first weight"
        )


if __name__ == "__main__":
    main()
