"""What a step is said to cost, by hand."""

import json
from pathlib import Path

import pytest
import transformers

from sams.policy.policy import Policy, weights_of
from sams.policy.rows import Item, pack_rows, pad_rows
from sams.runtime.costs import Costs
from sams.training.distribution import Workers

PAIR: list[Item] = [([1, 2, 3], [[4, 5], [6]])]


@pytest.mark.parametrize("tied", [True, False])
def test_flops_count_the_output_layer_for_completion_tokens_only(tmp_path: Path, tied: bool) -> None:
    config = transformers.LlamaConfig(
        vocab_size=10,
        hidden_size=4,
        intermediate_size=6,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    policy = Policy(transformers.LlamaForCausalLM(config))
    body = 4 * 4 * 4 + 3 * 4 * 6 + 3 * 4  # attention, MLP, three norms
    assert weights_of(policy) == (body, 10 * 4)

    workers = Workers(device="cpu", strategy="ddp", precision="float32", threads=1, timeout_minutes=1)
    costs = Costs(tmp_path / "costs.jsonl", workers, body, 40)
    for rows, trained in ((pad_rows(PAIR), False), (pack_rows(PAIR), True)):  # 5 and 4 tokens; 6 tokens
        costs.tally.add(rows.tokens, rows.input_ids.numel(), len(rows.answers), trained=trained)
    costs.step(1, seconds=2.0, data_seconds=0.0, log=True)
    [line] = [json.loads(text) for text in (tmp_path / "costs.jsonl").read_text().splitlines()]
    flops = 2 * (body * 9 + 40 * 3) + 6 * (body * 6 + 40 * 3)
    assert line["tflops_per_process"] == pytest.approx(flops / 2.0 / 1e12)
    assert line["tokens_per_second"] == (9 + 6) / 2.0
    assert line["padding_share"] == pytest.approx(1 - 15 / 16)


def test_steps_between_two_lines_count_in_the_medians(tmp_path: Path) -> None:
    workers = Workers(device="cpu", strategy="ddp", precision="float32", threads=1, timeout_minutes=1)
    costs = Costs(tmp_path / "costs.jsonl", workers, 100, 40)
    for step, tokens in enumerate((10, 30, 50, 70, 90), start=1):
        costs.tally.add(tokens, 100, 0, trained=True)
        costs.step(step, seconds=1.0, data_seconds=0.5, log=step == 4)
    [line] = [json.loads(text) for text in (tmp_path / "costs.jsonl").read_text().splitlines()]
    assert (line["step"], line["tokens_per_second"], line["data_seconds"]) == (4, 70, 0.5)
    assert costs.summary()["tokens_per_second"] == 50, "the fifth step counts too"
