"""What only a GPU can show: torchrun with NCCL, bfloat16, FSDP2, variable-length FlashAttention, generation."""

import json
import subprocess
import sys

import pytest
import torch

from sams.policy.attention import SEGMENTS, VARLEN
from sams.policy.policy import Policy
from sams.policy.rows import pack_rows, pad_rows
from tests.conftest import ROOT
from tests.gpu.small import ITEMS, model


def losses(strategy: str, device: str, precision: str) -> list[float]:
    """Of five steps under torchrun with one process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    command += ["-m", "tests.gpu.steps", strategy, device, precision]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["device"].startswith(device)
    return list(found["losses"])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_steps_in_bfloat16_follow_those_of_a_cpu_in_float32(strategy: str) -> None:
    expected = losses("ddp", "cpu", "float32")
    found = losses(strategy, "cuda", "bfloat16")
    assert expected[-1] < 0.9 * expected[0], "the steps learn something"
    assert found == pytest.approx(expected, rel=0.05, abs=0.05)


def test_packed_rows_in_one_flash_attention_call_equal_padded_rows() -> None:
    policy = Policy(model().to("cuda"))
    found = {}
    for layout in (None, SEGMENTS, VARLEN):
        policy.pack(layout)
        policy.zero_grad()
        rows = (pad_rows(ITEMS) if layout is None else pack_rows(ITEMS)).to(torch.device("cuda"))
        with torch.autocast("cuda", torch.bfloat16):
            scores = policy(rows)
        (scores.logps / scores.tokens).sum().backward()
        gradient = torch.cat([weight.grad.flatten() for weight in policy.parameters()])
        found[layout] = scores.logps.detach() / scores.tokens, gradient
    expected, gradient = found[None]
    for layout in (SEGMENTS, VARLEN):
        logps, other = found[layout]
        assert (logps - expected).abs().max() < 0.02
        assert (other - gradient).norm() < 0.05 * gradient.norm()


def test_greedy_answers_of_a_padded_batch_are_those_of_prompts_alone() -> None:
    pytest.importorskip("pydantic", reason="decode settings are typed with pydantic")
    import tempfile
    from pathlib import Path

    from sams.generation.engines import TransformersEngine
    from sams.study.settings import Decoding

    with tempfile.TemporaryDirectory() as folder:
        model().save_pretrained(folder)
        engine = TransformersEngine(Path(folder), "float32", Decoding(max_new_tokens=16), [2])
    assert engine.device == "cuda"
    prompts = [prompt for prompt, _ in ITEMS]
    together = engine.generate(prompts, 0.0, 0)
    assert [engine.generate([prompt], 0.0, 0)[0] for prompt in prompts] == together
    assert all(0 < len(answer) <= 16 for answer in together)
