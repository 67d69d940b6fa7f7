"""Write the model card of an exported folder: README.md, with the metadata that the Hugging Face hub reads.

It has no date and no duration: the same run gives the same card.
"""

from __future__ import annotations

import json
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import ModelCardData
from huggingface_hub.repocard import metadata_load

from sams.data.sources import data_set_name, is_hub_id
from sams.runtime.files import CARD, read_json
from sams.runtime.jsonl import complete_lines
from sams.runtime.provenance import ENVIRONMENT
from sams.study.model_files import LICENCES, matching

if TYPE_CHECKING:
    from sams.study.recipes import ExportRecipe

ADAPTER = "adapter"
"""Folder of the adapters, in the folder of the model into which they are merged."""
BASES_OWN = ("language", "license", "license_name", "license_link")
"""Metadata that is taken over from the card of the base model."""
KNOWN_LICENCES = {"Apache License": "apache-2.0", "MIT License": "mit"}
FIGURES = {
    "steps": "steps",
    "pairs_seen": "pairs or examples seen",
    "pairs_trained": "pairs or examples trained on",
    "test_accuracy": "accuracy on test pairs, %",
    "validation_accuracy": "accuracy on validation pairs, %",
    "eval/rewards/margins": "held-out reward margin",
    "eval/loss": "held-out loss",
}
REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
CITATION = """```bibtex
@inproceedings{sams2025,
  title     = {Adaptive Sample Scheduling for Direct Preference Optimization},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2025},
  note      = {arXiv 2506.17252}
}
```"""


def write_cards(out: Path, exported: ExportRecipe, start: Path | None, trained: Path | None) -> None:
    """Write the card of a model, and that of its adapters if it has any.

    Args:
        out: exported folder.
        exported: the recipe.
        start: folder of the start model; None for a fresh model.
        trained: folder of sharded weights, in the folder of its run; None for a model that was not trained.
    """
    run = _run_of(trained)
    adapter = read_json(out / ADAPTER / "adapter_config.json") if (out / ADAPTER).is_dir() else None
    cards = [(out, _text(exported, run, _use()))]
    if adapter is not None:
        cards.append((out / ADAPTER, _text(exported, run, _use_of_adapter(adapter, run), " (adapters)")))
    for folder, text in cards:
        data = _metadata(
            exported, start, run, adapter, library="peft" if folder.name == ADAPTER else "transformers"
        )
        (folder / CARD).write_text(f"---\n{data.to_yaml()}\n---\n\n{text}\n", encoding="utf-8")


def _run_of(trained: Path | None) -> dict[str, Any]:
    """Return recipe, figures and commit of a training run; empty where its files are missing."""
    if trained is None or not (trained.parent / "recipe.json").is_file():
        return {}
    folder = trained.parent
    run = {"recipe": read_json(folder / "recipe.json")["recipe"], "figures": {}, "commit": {}}
    if (folder / "train_metrics.json").is_file():
        run["figures"] |= read_json(folder / "train_metrics.json")
    for line in complete_lines(folder / "train.jsonl")[-1:]:
        run["figures"] |= json.loads(line)
    if (folder / ENVIRONMENT).is_file():
        run["commit"] = read_json(folder / ENVIRONMENT).get("commit") or {}
    return run


def _metadata(
    exported: ExportRecipe,
    start: Path | None,
    run: dict[str, Any],
    adapter: dict[str, Any] | None,
    *,
    library: str,
) -> ModelCardData:
    training = run.get("recipe", {}).get("training", {})
    tags = ["sams"]
    if run:
        tags.append(training.get("loss", "sft").replace("sigmoid", "dpo"))
    if adapter is not None:
        tags.append("lora")
    base = _base_name(exported)
    adapts_base = adapter is not None and adapter["base_model_name_or_path"] == exported.model.path
    relation = "adapter" if library == "peft" and adapts_base else "finetune"
    data_sets = {data_set_name(source)[0] for source in exported.data.values() if is_hub_id(source)}
    return ModelCardData(
        base_model=base,
        base_model_relation=relation if base and run else None,
        datasets=sorted(data_sets) or None,
        library_name=library,
        pipeline_tag="text-generation",
        tags=tags,
        **({} if start is None else _of_base(start)),
    )


def _base_name(exported: ExportRecipe) -> str | None:
    """Return the hub id of the start model, or the name of its folder; None where the hub would refuse it."""
    path = exported.model.path
    if path is None:
        return None
    name = Path(path).resolve().name if Path(path).is_dir() else path
    return name if REPOSITORY.fullmatch(name) else None


def _of_base(start: Path) -> dict[str, Any]:
    """Return language and licence of the base model, by its card or else by its licence file."""
    try:
        card = metadata_load(start / CARD) if (start / CARD).is_file() else None
    except (OSError, ValueError, yaml.YAMLError):
        card = None
    found = {key: card[key] for key in BASES_OWN if key in card} if isinstance(card, dict) else {}
    files = matching(start, LICENCES[:2])
    if "license" not in found and files:
        title = files[0].read_text(encoding="utf-8", errors="replace")[:400]
        known = [name for words, name in KNOWN_LICENCES.items() if words in title]
        found |= {"license": known[0]} if known else {"license": "other", "license_link": files[0].name}
    return found


def _text(exported: ExportRecipe, run: dict[str, Any], use: str, kind: str = "") -> str:
    recipe = run.get("recipe", {})
    training = recipe.get("training", {})
    base = _base_name(exported) or "a fresh model"
    title = f"{base}, {recipe.get('method', 'sft')}, seed {recipe['seed']}{kind}" if run else base
    parts = [f"# {title}", _summary(exported, run, base)]
    if exported.data:
        rows = {key: _data_name(source) for key, source in exported.data.items()}
        parts += ["## Data", _table(rows)]
    figures = run.get("figures", {})
    rows = {title: f"{figures[key]:.4g}" for key, title in FIGURES.items() if key in figures}
    if rows:
        parts += ["## Figures", _table(rows)]
    if run:
        stages = {"sft": exported.sft and exported.sft.model_dump(mode="json")}
        stages |= {"training": training, "scheduler": recipe.get("scheduler")}
        settings = {key: stage for key, stage in stages.items() if stage} | {"seed": recipe["seed"]}
        parts += ["## Settings", f"```yaml\n{yaml.safe_dump(settings, sort_keys=False)}```"]
    parts += ["## Use", use, "## Origin", _origin(run)]
    return "\n\n".join([*parts, "## Citation", CITATION])


def _summary(exported: ExportRecipe, run: dict[str, Any], base: str) -> str:
    model = exported.model
    revision = f", revision {model.revision}" if model.revision else ""
    base = f"`{base}`{revision}" if model.path else f"{base} ({(model.architecture or {})['model_type']})"
    licence = " Its licence applies to this model too." if model.path else ""
    if not run:
        return f"A copy of {base}, exported in the form of the trained models.{licence}"
    training = run["recipe"]["training"]
    if "loss" not in training:
        return f"{base}, fine-tuned on examples.{licence}"
    selector, share = training["selector"], training["ratio"]
    chosen = (
        "all pairs of each batch"
        if selector == "all"
        else f"{share:.0%} of the pairs, chosen by `{selector}`"
    )
    first = ", fine-tuned on examples and then" if exported.sft else ","
    loss = f"`{training['loss']}` with beta {training['beta']:g}"
    return f"{base}{first} trained on preference pairs: loss {loss}, {chosen}.{licence}"


def _data_name(source: str) -> str:
    """Return a hub id as it is, and the name of a file without its folder."""
    return source if is_hub_id(source) else Path(source).name


def _use() -> str:
    return """```python
from transformers import pipeline

generator = pipeline("text-generation", model="FOLDER_OR_ID")
messages = [{"role": "user", "content": "..."}]
print(generator(messages, max_new_tokens=256)[0]["generated_text"][-1]["content"])
```

The chat template of the tokenizer writes prompts; generation_config.json has the ids that end an answer."""


def _use_of_adapter(adapter: dict[str, Any], run: dict[str, Any]) -> str:
    base, revision = adapter["base_model_name_or_path"], adapter.get("revision")
    options = f', revision="{revision}"' if revision else ""
    text = f"""```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{base or "BASE"}"{options})
model = PeftModel.from_pretrained(base, "FOLDER_OR_ID")
```

The folder above has these adapters merged into the base, with tokenizer and generation settings."""
    if run and run["recipe"]["training"]["lora"]["load_in_4bit"]:
        text += " There the base is rounded to 4 bits (nf4, double quantisation), as it was in training."
    return text


def _origin(run: dict[str, Any]) -> str:
    try:
        package = f"sams {version('sams')}"
    except PackageNotFoundError:
        package = "sams"
    commit = run.get("commit", {})
    if not commit:
        return f"Made with {package}."
    changed = " with uncommitted changes" if commit.get("git_dirty") == "true" else ""
    of_code = f"commit {commit['git_commit']}" if "git_commit" in commit else f"code {commit['code']}"
    return f"Trained with {package}, {of_code}{changed}."


def _table(rows: dict[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])
