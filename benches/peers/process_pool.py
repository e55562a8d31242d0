#!/usr/bin/env python3
"""Calls to Python's ProcessPoolExecutor with one process: process_pool.py HOW COUNT LENGTH.

HOW is `one` (one call at a time) or `pipelined` (map, in chunks of up to 500 calls). Each call takes LENGTH bytes and gives them
back, as those of the other contenders do.
"""

import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor


def echo(octets):
    return octets


def main():
    how, count, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    signal.alarm(60)  # no run outlasts this
    octets = b"x" * length
    with ProcessPoolExecutor(max_workers=1) as pool:
        # The process is started at first use; that is not what is measured.
        pool.submit(echo, octets).result()
        start = time.perf_counter()
        if how == "one":
            for _ in range(count):
                pool.submit(echo, octets).result()
        else:
            # Octets of its own for each call: one object would be written once for all calls of a chunk.
            calls = (bytes(bytearray(octets)) for _ in range(count))
            # Chunks of at most 16 MiB.
            for _ in pool.map(echo, calls, chunksize=max(1, min(500, (16 << 20) // length))):
                pass
        seconds = time.perf_counter() - start
    print(f"calls={count} seconds={seconds:.6f} per_second={count / seconds:.1f}")


if __name__ == "__main__":
    main()
