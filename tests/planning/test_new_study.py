"""`sams init`: the study that it writes fits the model, the pairs and the memory."""

import json
from pathlib import Path

import numpy as np
import pytest
import transformers
import yaml
from typer.testing import CliRunner

from sams.cli import app
from sams.planning.models import Sizes, sizes_of
from sams.planning.new_study import Lengths, Machine, Weights, choose_weights, draft_of, new_study, render
from sams.policy.model import build_model
from sams.runtime.errors import UserError
from sams.runtime.gpus import GPUS
from sams.study.files import DEFAULT, load_study, read_settings
from tests import tiny
from tests.conftest import ROOT

LAPTOP = Machine(0, "the CPUs of this machine", 16e9)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "Tiny-Instruct"
    build_model(tiny.settings(), tiny.tokenizer(), seed=0).save_pretrained(folder)
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }} {% if m.role == 'assistant' %}<eos>{% endif %}{% endfor %}"
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Two hundred pairs of ten words, and one prompt that is three times the rest's."""
    rows = [
        {
            "prompt": f"w1 w{row % 40} w{row // 40}" + 30 * " w5" * (row == 7),
            "chosen": "w1 w2",
            "rejected": "w3",
        }
        for row in range(200)
    ]
    file = tmp_path / "my pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_the_study_is_valid_and_its_lengths_are_those_of_the_data(
    start: Path, pairs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mine.yaml"
    command = ["init", str(out), "--model", str(start), "--data", str(pairs), "--gpus", "0"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0 and f"sams data {out}" in result.output
    study = load_study(read_settings([DEFAULT, out]))
    assert study.study == "mine" and study.setting == "tiny-instruct"
    assert study.model.path == str(start) and study.data.train == str(pairs)
    assert study.sft is None and study.launch.device == "cpu"
    # Independent of the study's own code: the tokenizer's count of the longest pair but the one in a hundred.
    tokenizer = transformers.AutoTokenizer.from_pretrained(start)
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    lengths = [len(tokenizer(f"{row['prompt']} {row['chosen']} <eos>").input_ids) for row in rows]
    assert np.quantile(lengths, 0.98) <= study.data.max_length <= 64 < max(lengths) + 64
    assert study.data.max_prompt_length < study.data.max_length
    # A rate for a start model that knows something, and at least fifty steps where the data allows.
    assert study.preference.learning_rate <= 1e-5
    assert study.preference.batch_size == 8
    # Another data set does not overwrite it.
    again = CliRunner().invoke(app, command)
    assert isinstance(again.exception, UserError) and "a file already" in str(again.exception)


@pytest.mark.parametrize(
    ("billions", "gpus", "gpu", "asked", "expected"),
    [
        (0.135, 0, None, None, "full"),
        (7, 1, "H100", None, "lora"),
        (8, 8, "H100", None, "full"),
        (8, 8, "H100", "lora", "lora"),
        (8, 1, "L4", None, "lora"),
        (13, 1, "L4", None, "qlora"),
        (70, 1, "H200", None, "qlora"),
        (3, 1, "H100", None, "full"),
    ],
)
def test_adapters_are_trained_where_all_weights_do_not_fit(
    billions: float, gpus: int, gpu: str | None, asked: Weights | None, expected: Weights
) -> None:
    machine = Machine(gpus, gpu, GPUS[gpu].memory) if gpu else LAPTOP
    sizes = Sizes(int(billions * 1e9), int(billions * 1e9), 0, 0)
    assert choose_weights(asked, sizes, machine)[0] == expected


EXAMPLES: dict[str, tuple[Weights, Machine]] = {
    "own_model_lora": ("lora", Machine(1, "L4", GPUS["L4"].memory)),
    "own_model_full": ("full", Machine(8, "H100", GPUS["H100"].memory)),
}


def example(name: str) -> str:
    """Text of a shipped study: what `sams init` writes for Mistral 7B and 10,000 pairs of up to 1,024 tokens."""
    weights, machine = EXAMPLES[name]
    model = "mistralai/Mistral-7B-Instruct-v0.2"
    config = json.loads((ROOT / "config" / "models" / f"{model}.json").read_text())
    sizes = sizes_of(config)
    assert choose_weights(None, sizes, machine)[0] == weights
    out = Path("config") / "studies" / f"{name}.yaml"
    draft = draft_of(out, model, "pairs.jsonl")
    draft["model"]["model_type"] = config["model_type"]
    return render(draft, out, weights, Lengths(512, 1024, 9500, 0.01), sizes, machine, share=True)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_shipped_examples_are_what_init_writes(name: str) -> None:
    file = ROOT / "config" / "studies" / f"{name}.yaml"
    assert file.read_text(encoding="utf-8") == example(name)


def test_batches_divide_among_gpus_and_a_share_is_a_number(start: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "FILE of mine.yaml"
    machine = Machine(3, "H100", GPUS["H100"].memory)
    new_study(out, model=str(start), data=str(pairs), test="0.2", weights=None, machine=machine)
    study = load_study(read_settings([DEFAULT, out]))
    assert study.undivided(3) is None and study.preference.batch_size == 6 and study.data.test == 0.2
    assert f"sams run '{out}' " in out.read_text(), "the commands name the file that was written"


def test_what_does_not_fit_is_refused_with_the_way_out() -> None:
    sizes = Sizes(int(8e9), int(8e9), 0, 0)
    with pytest.raises(
        UserError, match=r"full training of 8 B weights takes 134 GiB .* \(--gpus\), .* or --qlora"
    ):
        choose_weights("full", sizes, Machine(1, "H100", GPUS["H100"].memory))


@pytest.mark.parametrize(("rows", "batch"), [(200, 8), (1000, 16)])
def test_rates_and_batches_follow_weights_and_pairs(
    start: Path, tmp_path: Path, rows: int, batch: int
) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(
        "".join(
            json.dumps({"prompt": f"w{row % 40} w{row // 40} w1", "chosen": "w1", "rejected": "w3"}) + "\n"
            for row in range(rows)
        ),
        encoding="utf-8",
    )
    found = {}
    for weights in ("full", "lora"):
        out = tmp_path / f"{weights}.yaml"
        machine = Machine(2, "H100", GPUS["H100"].memory)
        new_study(out, model=str(start), data=str(file), test=None, weights=weights, machine=machine)  # type: ignore[arg-type]
        found[weights] = yaml.safe_load(out.read_text())
        assert found[weights]["preference"]["batch_size"] == batch
        assert found[weights]["model"]["precision"] == "bfloat16"
    full, lora = found["full"], found["lora"]
    assert float(lora["preference"]["learning_rate"]) == pytest.approx(
        10 * float(full["preference"]["learning_rate"])
    )
    assert full["launch"]["strategy"] == "fsdp2" and lora["launch"]["strategy"] == "ddp"
    assert lora["preference"]["lora"] == {"r": 16, "alpha": 32.0} and "lora" not in full["preference"]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--model", "/nowhere", "--data", "DATA"], "--model: no such folder: /nowhere"),
        (["--model", "MODEL", "--data", "nothing.jsonl"], r"nothing\.jsonl"),
        (["--model", "MODEL", "--data", "DATA", "--full", "--lora"], "exclude each other"),
        (["--model", "MODEL", "--data", "DATA", "--gpu", "H1OO"], "no GPU 'H1OO'"),
        (["--model", "MODEL", "--data", "DATA", "--gpus", "0", "--qlora"], "4-bit weights need a GPU"),
        (
            ["--model", "MODEL", "--data", "DATA", "--gpu", "B200", "--gpus", "200"],
            "fewer than a batch of 400",
        ),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    start: Path, pairs: Path, tmp_path: Path, flags: list[str], problem: str
) -> None:
    given = [{"MODEL": str(start), "DATA": str(pairs)}.get(flag, flag) for flag in flags]
    out = tmp_path / "mine.yaml"
    result = CliRunner().invoke(app, ["init", str(out), *given])
    assert isinstance(result.exception, UserError)
    assert not out.exists()
    with pytest.raises(UserError, match=problem):
        raise result.exception
