"""Does the HEF reader stand whatever the bytes say? Mutates synthetic HEFs of all versions and reads each.

    python benchmarks/hef_fuzz.py --files 200000

Bit flips, bytes overwritten, pieces cut out, doubled and truncated, and length bombs (a field's length made huge), in
the description inside the file; the header and its checksum are made to fit in two of three files, since otherwise
nothing would get past them. A file must be read or refused with `RequestError` in one line. Reports how many of each,
the slowest file, the most memory that one reading took (tracemalloc, every 50th file), and exits with 1 at a crash, at
a file of more than a second or at one that took more than 64 MiB.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import tracemalloc
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from helpers_hef import Port, container, make_hef, protobuf

from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.hailo.hef import read_hef

INPUT = Port("encoder/input_layer1", (1, 3000, 80), zero_point=12, scale=0.0123)
OUTPUTS = [
    Port("encoder/conv9", (1, 1500, 384), data_bytes=2, zero_point=30_000, scale=0.001),
    Port("encoder/conv7", (1, 750, 8), scales=tuple([0.5] * 8), zero_points=tuple([3.0] * 8)),
]
BOMB = b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"


def mutated(draw: random.Random, data: bytes) -> bytes:
    """The data with one to eight faults."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 8))):
        if not out:
            break
        place, kind = draw.randrange(len(out)), draw.randrange(7)
        if kind == 0:
            out[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            out[place] = draw.randrange(256)
        elif kind == 2:
            del out[place : place + draw.randint(1, 20)]
        elif kind == 3:
            out[place:place] = out[place : place + draw.randint(1, 200)]
        elif kind == 4:
            del out[place:]
        elif kind == 5:
            out[place : place + 1] = BOMB[draw.randrange(10) :]
        else:
            out[place:place] = draw.randbytes(draw.randint(1, 20))
    return bytes(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    kinds = [
        {"arch": arch, "net_flow": net_flow, "contexts": contexts, "mux": mux}
        for arch in ("hailo8l", "hailo8")
        for net_flow in (True, False)
        for contexts in (1, 3)
        for mux in (False, True)
    ]
    protos = [protobuf([INPUT], OUTPUTS, **kind) for kind in kinds]
    wholes = [make_hef([INPUT], OUTPUTS, version=version, **kind) for kind in kinds for version in range(4)]
    read = refused = crashed = 0
    slowest = most = 0.0
    reasons: dict[str, int] = {}
    started = time.monotonic()
    for index in range(arguments.files):
        if index % 3:
            content = container(mutated(draw, draw.choice(protos)), draw.randrange(4), bytes(40))
        else:
            content = mutated(draw, draw.choice(wholes))
        watched = index % 50 == 0
        if watched:
            tracemalloc.start()
        began = time.perf_counter()
        try:
            read_hef(content)
            read += 1
        except RequestError as error:
            refused += 1
            reason = " ".join(str(error).split()[2:6])
            reasons[reason] = reasons.get(reason, 0) + 1
            if "\n" in str(error):
                crashed += 1
        except Exception as error:
            crashed += 1
            print(f"file {index}: {type(error).__name__}: {error}", file=sys.stderr)
        if watched:
            most = max(most, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        else:
            slowest = max(slowest, time.perf_counter() - began)
    result = {
        "files": arguments.files,
        "read": read,
        "refused": refused,
        "crashed": crashed,
        "slowest_ms": round(1e3 * slowest, 2),
        "most_memory_kib": round(most / 1024, 1),
        "seconds": round(time.monotonic() - started, 1),
        "reasons": dict(sorted(reasons.items(), key=lambda item: -item[1])[:12]),
    }
    print(json.dumps(result, indent=2))
    return int(crashed > 0 or slowest > 1 or most > 64 * 2**20)


if __name__ == "__main__":
    raise SystemExit(main())
