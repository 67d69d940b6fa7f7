"""Make preference pairs of a model's own answers: the best and the worst of several by a reward model.

    python -m sams.generation.on_policy --recipe '{"seed": 0, "precision": "bfloat16"}' --model MODEL \
        --prompts prompts.jsonl --reward-model PATH_OR_ID --out pairs.jsonl

The prompts are rows with the key `prompt`, text or messages, in the forms that `sams.data` reads, such as
files of preference pairs. The pairs are JSON lines {prompt, chosen, rejected}, which `sams.data` reads.
<pairs>.meta.json, in the same folder, holds settings, digests and the number of prompts without a pair. A killed run
resumes after the last decoded batch; rewards are computed again.

Source: SimPO (arXiv 2405.14734), which samples 5 answers at temperature 0.8.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sams.data.forms import read_prompts
from sams.generation.facts import made_with, model_digest, parts_path
from sams.generation.shards import Shards
from sams.runtime.errors import UserError
from sams.runtime.files import canonical_json, sha256_of, write_json
from sams.runtime.jsonl import write_lines
from sams.runtime.provenance import made_on
from sams.runtime.stage import read_recipe, run
from sams.scoring.inputs import meta_path
from sams.scoring.question_set import sample_label
from sams.study.recipes import OnPolicyRecipe

log = logging.getLogger("generate")


def make_pairs(
    recipe: OnPolicyRecipe, model: Path, prompts: str, reward_model: str, out: Path, parts: Path | None = None
) -> dict[str, Any]:
    """Sample answers, score them, and write a pair for each prompt whose answers differ.

    Args:
        recipe: settings of sampling and scoring.
        model: exported model folder.
        prompts: file or hub data set with the key `prompt`.
        reward_model: folder or hub id of a sequence classifier with one output.
        out: file for the pairs.
        parts: file for decoded batches; None: `parts_path`.

    Returns:
        The content of <out>.meta.json.

    Raises:
        UserError: unreadable prompts or models, a prompt that does not fit the model, or no pair at all.
    """
    import torch

    from sams.generation.decode import Decoder
    from sams.scoring.reward import RewardModel

    conversations = list(read_prompts(prompts, "train"))
    sampling = {
        "seed": recipe.seed,
        "precision": recipe.precision,
        "decoding": recipe.decoding.model_dump(mode="json"),
        "template_date": recipe.template_date,
        "model": model_digest(model),
        "prompts": hashlib.sha256(canonical_json(conversations).encode()).hexdigest(),
        **made_with(recipe.decoding, "sams.generation.decode"),
    }
    rewards = RewardModel(reward_model, recipe.precision, recipe.reward_batch_size)
    shards = Shards(parts or parts_path(out), sampling)
    decoder = Decoder(model, recipe.precision, recipe.decoding, recipe.seed, shards, recipe.template_date)
    temperatures = [recipe.decoding.temperature] * len(conversations)
    samples = [
        decoder.answer(conversations, temperatures, sample_label("on_policy", sample))
        for sample in range(recipe.decoding.samples)
    ]
    n_resumed = decoder.n_resumed
    del decoder  # frees memory for the reward model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

    candidates = [
        list(dict.fromkeys(answer.text for answer in group if answer.text))
        for group in zip(*samples, strict=True)
    ]
    scores = rewards.scores(
        [
            [*prompt, {"role": "assistant", "content": text}]
            for prompt, texts in zip(conversations, candidates, strict=True)
            for text in texts
        ]
    )
    following = iter(scores)
    pairs = []
    dropped: Counter[str] = Counter(alike=0, too_long=0, tied=0)
    for prompt, texts in zip(conversations, candidates, strict=True):
        pair, reason = best_and_worst(texts, [next(following) for _ in texts])
        if pair is None:
            dropped[reason] += 1
        else:
            pairs.append({"prompt": prompt, "chosen": pair[0], "rejected": pair[1]})
    if not pairs:
        raise UserError(
            f"none of {len(conversations)} prompts gives a pair: {dict(dropped)}",
            where=prompts,
            remedy="raise `decoding.temperature` or `decoding.samples`",
        )
    answers = [answer for sample in samples for answer in sample]
    meta = {
        **sampling,
        "reward_model": rewards.identity,
        "n_prompts": len(conversations),
        "n_pairs": len(pairs),
        "n_dropped": dict(dropped),
        "n_answers": len(answers),
        "n_resumed": n_resumed,
        "n_empty": sum(not answer.text for answer in answers),
        "n_truncated": sum(answer.truncated for answer in answers),
        "n_too_long": scores.count(None),
    }
    meta_path(out).unlink(
        missing_ok=True
    )  # a kill before the next write must not leave the facts of other pairs
    write_lines(out, pairs)
    meta |= {"sha256": sha256_of(out), "environment": made_on()}
    write_json(meta_path(out), meta)
    shards.remove()
    return meta


def best_and_worst(
    texts: Sequence[str], scores: Sequence[float | None]
) -> tuple[tuple[str, str] | None, str]:
    """Return the answers with the highest and the lowest reward, or None and the reason.

    Args:
        texts: different answers to one prompt.
        scores: their rewards; None for an answer that is too long for the reward model.

    Returns:
        Chosen and rejected, the first of equal rewards; and the reason for None: `alike` (less than two different
        answers), `too_long` (less than two with a reward), `tied` (all rewards equal), or "".
    """
    if len(texts) < 2:
        return None, "alike"
    scored = [(score, text) for text, score in zip(texts, scores, strict=True) if score is not None]
    if len(scored) < 2:
        return None, "too_long"
    best = max(scored, key=lambda pair: pair[0])
    worst = min(scored, key=lambda pair: pair[0])
    if best[0] == worst[0]:
        return None, "tied"
    return (best[1], worst[1]), ""


# --- command line ---------------------------------------------------------------------------------


def main(
    recipe: Annotated[str, typer.Option(help="OnPolicyRecipe, as JSON or a file.")],
    model: Annotated[Path, typer.Option(help="Exported model folder.")],
    prompts: Annotated[str, typer.Option(help="Rows with the key `prompt`: file or hub id.")],
    reward_model: Annotated[str, typer.Option(help="Sequence classifier: folder, hub id or id@revision.")],
    out: Annotated[Path, typer.Option(help="File for the pairs.")],
    parts: Annotated[
        Path | None, typer.Option(help="File for decoded batches (.<out>.parts in the same folder).")
    ] = None,
) -> None:
    """Make preference pairs of a model's own answers."""
    meta = make_pairs(read_recipe(recipe, OnPolicyRecipe), model, prompts, reward_model, out, parts)
    log.info("%d pairs of %d prompts, dropped: %s", meta["n_pairs"], meta["n_prompts"], meta["n_dropped"])


if __name__ == "__main__":
    run(main)
