"""Seconds that `import efficient_vits` adds to `import timm`: medians over fresh processes.

python benchmarks/import_time.py --repeats 5
"""

import argparse
import statistics
import subprocess
import sys

TIMER = """
import time
start = time.perf_counter()
import timm
middle = time.perf_counter()
import efficient_vits
print(middle - start, time.perf_counter() - middle)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    rows = []
    for _ in range(repeats):
        run = subprocess.run([sys.executable, "-c", TIMER], check=True, capture_output=True)
        rows.append([float(seconds) for seconds in run.stdout.split()])
    timm, ours = (statistics.median(column) for column in zip(*rows, strict=True))
    spread = max(row[1] for row in rows) - min(row[1] for row in rows)
    print(f"import timm            {timm:6.3f} s")
    print(f"import efficient_vits {ours:+7.3f} s  (range {spread:.3f} s, {repeats} processes)")


if __name__ == "__main__":
    main()
