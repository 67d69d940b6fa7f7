"""Peak memory of training passes on the CPU, measured: python -m tests.planning.measured CONFIG PASSES MAX_LENGTH.

In a process started with MALLOC_MMAP_THRESHOLD_=65536, so that what is freed goes back to the system at once. Prints,
for each of the passes, the bytes of the weights and the peak above them, from the kernel's count of resident pages.
"""

import json
import sys
from pathlib import Path

import torch

from sams.planning.memory import Passes, longest_rows
from sams.planning.models import build
from sams.policy.attention import SEGMENTS
from sams.policy.policy import Policy
from sams.policy.rows import Rows


def resident(field: str) -> int:
    """Bytes of this process, from the kernel."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in text.splitlines() if line.startswith(field)))


def step(policy: Policy, rows: Rows) -> None:
    """Forward, backward."""
    policy(rows).logps.mean().backward()
    policy.zero_grad()


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = []
    for given in json.loads(sys.argv[2]):
        passes = Passes(**given)
        policy = build(json.loads(sys.argv[1]), "sdpa").to_empty(device="cpu")
        for part in (*policy.parameters(), *policy.buffers()):
            torch.nn.init.uniform_(part, -0.05, 0.05)
        policy.pack(SEGMENTS)
        policy.prepare(compiled=False, checkpointing=passes.checkpointing)
        step(policy, longest_rows(passes, 16, packed=True))  # what libraries take once
        rows = longest_rows(passes, int(sys.argv[3]), packed=True)
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        step(policy, rows)
        weights = sum(parameter.numel() * parameter.element_size() for parameter in policy.parameters())
        found.append({"weights": weights, "above": resident("VmHWM") - before})
    print(json.dumps(found))
