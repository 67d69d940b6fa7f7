"""Generation engines: transformers, or vLLM if it is installed."""

import hashlib
import sys
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from sams.policy.attention import disable_cudnn_attention
from sams.runtime.progress import quiet_loading
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
        """Return the token ids that follow each prompt, up to and including the first stop token.

        Args:
            prompts: token ids, with one BOS; each shorter than the context.
            temperature: 0 decodes greedily.
            seed: seed of all sampling in this call.
        """
        ...


def open_engine(folder: Path, precision: str, decoding: Decoding, stop_ids: list[int]) -> Engine:
    """Load a model into the engine of the settings.

    Args:
        folder: exported model.
        precision: type of the weights and of the computation.
        decoding: the settings.
        stop_ids: token ids that end an answer.

    Raises:
        OSError, ValueError: no readable model in the folder.
    """
    engine = VllmEngine if decoding.engine == "vllm" else TransformersEngine
    return engine(folder, precision, decoding, stop_ids)


def derived_seed(*parts: object) -> int:
    """Return a seed that depends on all parts, the same in every process."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) >> 1


def _positions(config: Any) -> int:
    return getattr(config.get_text_config(), "max_position_embeddings", None) or sys.maxsize


class TransformersEngine:
    """Batched decoding with a KV cache, by `generate` of transformers."""

    def __init__(self, folder: Path, precision: str, decoding: Decoding, stop_ids: list[int]) -> None:
        quiet_loading()
        disable_cudnn_attention()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, precision), use_safetensors=True, trust_remote_code=False
        )
        # Decoding settings of the model would replace those that are not set here.
        model.generation_config = GenerationConfig()
        model.to(self.device)  # type: ignore[arg-type]  # the decorator hides the method's own types
        self.model: Any = model.eval()
        self.most_positions = _positions(model.config)
        self._decoding = decoding
        self._stop_ids = stop_ids

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], temperature: float, seed: int) -> list[list[int]]:
        """See `Engine`. Prompts are padded on the left, so that all answers begin at the same position.

        If the longest prompt of a batch leaves less than `max_new_tokens` of the context, this limit holds for every
        answer of the batch.
        """
        width = max(map(len, prompts))
        padding = self._stop_ids[0]  # masked before a prompt, cut off after an answer
        ids = torch.full((len(prompts), width), padding, device=self.device)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt, device=self.device)
            mask[row, width - len(prompt) :] = 1
        sampling = (
            {
                "do_sample": True,
                "temperature": temperature,
                "top_p": self._decoding.top_p,
                "top_k": self._decoding.top_k,  # the default of transformers is 50
            }
            if temperature > 0
            else {"do_sample": False}
        )
        config = GenerationConfig(
            max_new_tokens=min(self._decoding.max_new_tokens, self.most_positions - width),
            eos_token_id=self._stop_ids,
            pad_token_id=padding,
            use_cache=True,
            repetition_penalty=self._decoding.repetition_penalty,
            **sampling,
        )
        torch.manual_seed(seed)
        output = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        return [self._up_to_stop(row) for row in output[:, width:].tolist()]

    def _up_to_stop(self, tokens: list[int]) -> list[int]:
        stop = next((index for index, token in enumerate(tokens) if token in self._stop_ids), len(tokens))
        return tokens[: stop + 1]


class VllmEngine:
    """Continuous batching by vLLM. Samples repeat by seed, but not bitwise on every GPU."""

    def __init__(self, folder: Path, precision: str, decoding: Decoding, stop_ids: list[int]) -> None:
        from vllm import LLM

        # "vllm": ignore stop ids and sampling in the generation_config.json of the model.
        self._llm = LLM(model=str(folder), dtype=precision, generation_config="vllm", trust_remote_code=False)
        self.device = "cuda"
        self.most_positions = _positions(AutoConfig.from_pretrained(folder, trust_remote_code=False))
        self._decoding = decoding
        self._stop_ids = stop_ids

    def generate(self, prompts: list[list[int]], temperature: float, seed: int) -> list[list[int]]:
        """See `Engine`."""
        from vllm import SamplingParams

        sampling = [
            SamplingParams(**vllm_sampling(self._decoding, temperature, seed, row, self._stop_ids))
            for row in range(len(prompts))
        ]
        # Token ids, not text: vLLM would add a second BOS to a text.
        requests = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self._llm.generate(requests, sampling, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


def vllm_sampling(
    decoding: Decoding, temperature: float, seed: int, row: int, stop_ids: list[int]
) -> dict[str, Any]:
    """Return the arguments of vLLM's `SamplingParams` for one prompt of a batch.

    Each request has its own seed, since requests are independent.
    """
    return {
        "temperature": temperature,
        "top_p": decoding.top_p if temperature > 0 else 1.0,
        "top_k": decoding.top_k if temperature > 0 else 0,
        "repetition_penalty": decoding.repetition_penalty,
        "max_tokens": decoding.max_new_tokens,
        "stop_token_ids": stop_ids,
        "seed": derived_seed(seed, row),
        "detokenize": False,
    }
