"""The replay against torch's own caching allocator, on a card or an emulated one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
ROOT = Path(__file__).resolve().parents[4]

REPLAY = """
import ctypes, json, random, sys, torch
from engine.plan.memory.allocator import replay
expandable, taken = sys.argv[1] == "True", ctypes.c_void_p()
draw, alive, sizes, events = random.Random(1), {}, [], []
torch.cuda.init()
torch.empty(1, device="cuda"); torch.cuda.empty_cache()
free, total = torch.cuda.mem_get_info()
limit = 2 << 30
runtime = ctypes.CDLL("libcudart.so." + torch.version.cuda.partition(".")[0])
if sys.argv[2] == "short":
    assert runtime.cudaMalloc(ctypes.byref(taken), ctypes.c_size_t(free - limit)) == 0
    limit = torch.cuda.mem_get_info()[0]
else:
    limit = free
fits = True
for _ in range(1500):
    live = sum(sizes[number - 1] for number in alive)
    if alive and (live > 1.9 * (1 << 30) or draw.random() < 0.35):
        number = draw.choice(sorted(alive))
        del alive[number]
        events.append(-number)
        continue
    sizes.append(draw.choice((700, 90_000, 3 << 20, 30 << 20, 111 << 20)) + draw.randrange(200_000))
    events.append(len(sizes))
    try:
        alive[len(sizes)] = torch.empty(sizes[-1], dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError:
        fits = False
        break
figures = torch.cuda.memory_stats()
ours = replay(sizes, events, limit, expandable, total)
print(json.dumps({"real": [fits, figures["reserved_bytes.all.peak"], figures["num_alloc_retries"]],
                  "ours": [ours.fits, ours.reserved, ours.retries], "events": len(events)}))
"""


@pytest.mark.parametrize("room", ["plenty", pytest.param("short", marks=pytest.mark.emulated)])
@pytest.mark.parametrize("expandable", [True, False])
def test_what_is_held_and_when_it_runs_out(expandable, room):
    """Byte for byte, and as many times given back, over 1,500 requests and frees of all sizes."""
    environment = {**os.environ, "PYTORCH_ALLOC_CONF": f"expandable_segments:{expandable}"}
    command = [sys.executable, "-c", REPLAY, str(expandable), room]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ours"] == found["real"]
    assert (found["real"][2] > 0) == (room == "short")
