"""What continues prompts: transformers, or vLLM where it is installed."""

import hashlib
import sys
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from sams.study.settings import Decoding


class Engine(Protocol):
    """A loaded model.

    Attributes:
        device: cuda or cpu.
        most_positions: the model's context in tokens.
    """

    device: str
    most_positions: int

    def generate(self, prompts: list[list[int]], temperature: float, seed: int) -> list[list[int]]:
        """Token ids that follow each prompt, the first stop token the last of them if one came.

        Args:
            prompts: token ids, one BOS included; each shorter than the context.
            temperature: 0 decodes greedily.
            seed: of all sampling in this call.
        """
        ...


def open_engine(folder: Path, precision: str, decoding: Decoding, stop_ids: list[int]) -> Engine:
    """Load a model into the engine of the settings.

    Args:
        folder: exported model.
        precision: type that the weights are held and computed in.
        decoding: the settings.
        stop_ids: token ids that end an answer.

    Raises:
        OSError, ValueError: no readable model in the folder.
    """
    engine = VllmEngine if decoding.engine == "vllm" else TransformersEngine
    return engine(folder, precision, decoding, stop_ids)


def quiet_loading() -> None:
    """No progress bars of transformers' in a log file."""
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()


def derived_seed(*parts: object) -> int:
    """A seed that depends on all of its parts, the same in every process."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) >> 1


def _positions(config: Any) -> int:
    return getattr(config, "max_position_embeddings", None) or sys.maxsize


class TransformersEngine:
    """Whole batches with a KV cache, as `generate` of transformers decodes them."""

    def __init__(self, folder: Path, precision: str, decoding: Decoding, stop_ids: list[int]) -> None:
        quiet_loading()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, precision), use_safetensors=True, trust_remote_code=False
        )
        # Whatever decode settings came with the model would fill in for those that are not set here.
        model.generation_config = GenerationConfig()
        model.to(self.device)  # type: ignore[arg-type]  # the decorator hides the method's own types
        self.model: Any = model.eval()
        self.most_positions = _positions(model.config)
        self._decoding = decoding
        self._stop_ids = stop_ids

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], temperature: float, seed: int) -> list[list[int]]:
        """As `Engine` says. Padded on the left, so that all answers begin at the same position.

        In a batch whose longest prompt leaves less than `max_new_tokens` of the context, every answer has the
        room that is left to the longest.
        """
        width = max(map(len, prompts))
        padding = self._stop_ids[0]  # hidden by the mask before a prompt, cut off after an answer
        ids = torch.full((len(prompts), width), padding, device=self.device)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt, device=self.device)
            mask[row, width - len(prompt) :] = 1
        sampling = (
            # Top-k is 50 in transformers unless said otherwise.
            {"do_sample": True, "temperature": temperature, "top_p": self._decoding.top_p, "top_k": 0}
            if temperature > 0
            else {"do_sample": False}
        )
        config = GenerationConfig(
            max_new_tokens=min(self._decoding.max_new_tokens, self.most_positions - width),
            eos_token_id=self._stop_ids,
            pad_token_id=padding,
            use_cache=True,
            **sampling,
        )
        torch.manual_seed(seed)
        output = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        return [self._up_to_stop(row) for row in output[:, width:].tolist()]

    def _up_to_stop(self, tokens: list[int]) -> list[int]:
        stop = next((place for place, token in enumerate(tokens) if token in self._stop_ids), len(tokens))
        return tokens[: stop + 1]


class VllmEngine:
    """vLLM's continuous batching. Its samples repeat by seed, though not bit by bit on every GPU."""

    def __init__(self, folder: Path, precision: str, decoding: Decoding, stop_ids: list[int]) -> None:
        from vllm import LLM

        # "vllm": neither the stop ids nor the sampling of the model's generation_config.json.
        self._llm = LLM(model=str(folder), dtype=precision, generation_config="vllm", trust_remote_code=False)
        self.device = "cuda"
        self.most_positions = _positions(AutoConfig.from_pretrained(folder, trust_remote_code=False))
        self._decoding = decoding
        self._stop_ids = stop_ids

    def generate(self, prompts: list[list[int]], temperature: float, seed: int) -> list[list[int]]:
        """As `Engine` says."""
        from vllm import SamplingParams

        sampling = [
            SamplingParams(**vllm_sampling(self._decoding, temperature, seed, row, self._stop_ids))
            for row in range(len(prompts))
        ]
        # Token ids, not text: vLLM would add a BOS to a text that has one already.
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        found = self._llm.generate(asked, sampling, use_tqdm=False)
        return [list(request.outputs[0].token_ids) for request in found]


def vllm_sampling(
    decoding: Decoding, temperature: float, seed: int, row: int, stop_ids: list[int]
) -> dict[str, Any]:
    """Arguments of vLLM's `SamplingParams` for one prompt of a batch: its requests know nothing of each other,
    so that each needs a seed of its own."""
    return {
        "temperature": temperature,
        "top_p": decoding.top_p if temperature > 0 else 1.0,
        "max_tokens": decoding.max_new_tokens,
        "stop_token_ids": stop_ids,
        "seed": derived_seed(seed, row),
        "detokenize": False,
    }
