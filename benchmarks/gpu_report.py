"""The marks of the GPU benchmark, and gpu.json as a Markdown page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mark:
    """A figure with its limits.

    Attributes:
        what: description.
        mark: limit.
        goal: limit to aim at.
        predicted: prediction for one H200, derived in docs/performance.md.
        at_least: whether the limits are lower limits.
    """

    what: str
    mark: float
    goal: float
    predicted: float
    at_least: bool = False


MARKS = {
    "fresh_over_repeated": Mark("plain DPO, a batch never seen before / the same again", 1.10, 1.02, 1.02),
    "plain_over_trl": Mark("plain DPO / TRL", 0.58, 0.50, 0.50),
    "sams_over_trl": Mark("SamS, half of the pairs / TRL", 0.58, 0.46, 0.53),
    "sams_over_plain": Mark("SamS / plain DPO, 8 layers, 32 pairs", 0.86, 0.80, 0.87),
    "mfu": Mark("model FLOPs utilisation of plain DPO, 8 layers, 32 pairs", 0.45, 0.52, 0.50, at_least=True),
    "lora_8b_gib": Mark("peak GiB, LoRA on 8 B, 8 pairs, checkpointing, bfloat16 base", 28, 22, 20.5),
    "lora_8b_4bit_gib": Mark("the same, 4-bit base", 16, 12, 11),
}


def best(section: dict[str, Any]) -> dict[str, Any]:
    """Return the figures with compiled blocks, which `compile: auto` chooses on a GPU; else those without."""
    found: dict[str, Any] = section.get("compiled") or section.get("eager") or {}
    return found


def keys_of(sections: dict[str, Any]) -> dict[str, float]:
    """Return the figures with marks, and others that explain them, as far as they were measured."""

    def of(section: str, figure: str, mode: str = "") -> float | None:
        figures = sections.get(section, {})
        value = (figures.get(mode, {}) if mode else best(figures)).get(figure)
        return None if value is None else float(value)

    def ratio(one: float | None, other: float | None) -> float | None:
        return None if one is None or not other else one / other

    found = {
        "fresh_over_repeated": ratio(of("plain", "ms"), of("plain", "repeated_ms")),
        "plain_over_trl": ratio(of("plain", "ms"), of("trl", "ms")),
        "sams_over_trl": ratio(of("sams", "ms"), of("trl", "ms")),
        "sams_over_plain": ratio(of("sams_large", "ms"), of("plain_large", "ms")),
        "mfu": of("plain_large", "mfu"),
        "lora_8b_gib": of("lora_8b", "peak_gib"),
        "lora_8b_4bit_gib": of("lora_8b_4bit", "peak_gib"),
        "plain_over_hf_padded": ratio(of("plain", "ms"), of("hf_padded", "ms")),
        "sams_over_hf_padded": ratio(of("sams", "ms"), of("hf_padded", "ms")),
        "trl_over_hf_padded": ratio(of("trl", "ms"), of("hf_padded", "ms")),
        "plain_compiled_over_eager": ratio(of("plain", "ms", "compiled"), of("plain", "ms", "eager")),
        "sams_fresh_over_repeated": ratio(of("sams", "ms"), of("sams", "repeated_ms")),
        "generation_tokens_per_s": sections.get("generation", {}).get("tokens_per_s"),
    }
    return {name: value for name, value in found.items() if value is not None}


def with_marks(facts: dict[str, Any], sections: dict[str, Any]) -> dict[str, Any]:
    """Return the content of gpu.json: keys at the top, their marks, facts of the run, and all sections."""
    keys = keys_of(sections)
    return {
        **{name: keys.get(name) for name in MARKS},
        **{name: value for name, value in keys.items() if name not in MARKS},
        "not_run": [name for name in MARKS if name not in keys],
        "marks": {
            name: {
                "mark": mark.mark,
                "goal": mark.goal,
                "predicted": mark.predicted,
                "at_least": mark.at_least,
            }
            for name, mark in MARKS.items()
        },
        **facts,
        "sections": sections,
    }


def number(value: Any, decimals: int = 2) -> str:
    """Return a number as text; a dash for none."""
    return f"{value:,.{decimals}f}".replace(",", " ") if isinstance(value, int | float) else "–"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a Markdown table with its first column on the left; none without rows."""
    if not rows:
        return []
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return ["", *("| " + " | ".join(line) + " |" for line in lines)]


def markdown(result: dict[str, Any]) -> str:
    """Return a page with the tables of gpu.json."""
    sections = result["sections"]
    libraries = result["environment"]["libraries"]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(libraries.items()))
    title = (
        "Rehearsal on a CPU: no figure says anything about speed" if result["rehearsal"] else result["device"]
    )
    lines = [f"# GPU benchmark: {title}", "", f"{result['date']}, {result['precision']}; {versions}.", ""]
    lines += ["## Marks", *marks_table(result)]
    lines += ["", "## Steps", "", "Medians over fresh batches; `repeated` is the same batches once more."]
    lines += contestants_table(sections)
    lines += profiles(sections)
    lines += ["", "## Other sections"]
    lines += [f"- {text}" for text in others(sections)]
    lines += failures(sections)
    return "\n".join([*lines, ""])


def marks_table(result: dict[str, Any]) -> list[str]:
    """Table of measured figures, their marks and predictions."""
    rows = []
    for name, mark in MARKS.items():
        value = result[name]
        reached = "not run"
        if value is not None:
            holds = [value >= limit if mark.at_least else value <= limit for limit in (mark.mark, mark.goal)]
            reached = "goal" if holds[1] else "mark" if holds[0] else "no"
            if result["rehearsal"]:
                reached = "rehearsal"
        limits = [number(each) for each in (mark.mark, mark.goal, mark.predicted)]
        rows.append([f"`{name}`", mark.what, number(value), *limits, reached])
    rows += [
        [f"`{name}`", "", number(value), "", "", "", ""]
        for name, value in result.items()
        if name.endswith(("_hf_padded", "_eager", "_s")) or name == "sams_fresh_over_repeated"
    ]
    return table(["key", "what", "measured", "mark", "goal", "predicted", "reached"], rows)


def contestants_table(sections: dict[str, Any]) -> list[str]:
    """Table of the timed trainers."""
    rows = []
    for name, section in sections.items():
        for mode in ("eager", "compiled"):
            if figures := section.get(mode):
                graphs = f"{figures.get('graphs', 0)} + {figures.get('graphs_while_measuring', 0)}"
                rows.append(
                    [
                        f"{name}, {mode}",
                        number(figures.get("ms"), 1),
                        number(figures.get("pairs_per_s"), 1),
                        number(figures.get("repeated_ms"), 1),
                        number(figures.get("peak_gib"), 1),
                        number(figures.get("mfu"), 3),
                        graphs,
                        str(section.get("rows", "")).removeprefix("sams_"),
                    ]
                )
    head = ["trainer", "ms", "pairs/s", "repeated ms", "peak GiB", "MFU", "graphs: warm-up + later", "rows"]
    return table(head, rows)


def profiles(sections: dict[str, Any]) -> list[str]:
    """Table of the profiles: milliseconds a step by class of kernel."""
    found = {
        f"{name}, {mode}": figures["profile"]
        for name, section in sections.items()
        for mode, figures in section.items()
        if isinstance(figures, dict) and "profile" in figures
    }
    if not found:
        return []
    kinds = sorted({kind for profile in found.values() for kind in profile["ms_by_class"]})
    rows = [[kind, *(number(each["ms_by_class"].get(kind), 1) for each in found.values())] for kind in kinds]
    rows += [
        [label, *(number(each[key], decimals) for each in found.values())]
        for label, key, decimals in (
            ("all kernels", "ms_of_all_kernels", 1),
            ("wall, with the profiler", "ms_wall", 1),
            ("kernels a step", "kernels_a_step", 0),
        )
    ]
    return ["", "## Profiles, ms a step", *table(["kernels", *found], rows)]


def others(sections: dict[str, Any]) -> list[str]:
    """Sentences about the sections without a table."""
    texts = []
    for name, section in sections.items():
        if reason := section.get("not_run"):
            texts.append(f"{name}: not run: {reason}.")
        if fallbacks := section.get("fallbacks"):
            texts.append(f"{name}: {'; '.join(fallbacks)}.")
    generation, checks = sections.get("generation", {}), sections.get("checks", {})
    if "tokens_per_s" in generation:
        texts.append(
            f"generation: {number(generation['tokens_per_s'], 0)} tokens/s, {generation['prompts']} prompts, "
            f"{generation['new_tokens']} new tokens."
        )
    for layout, error in checks.get("bfloat16_errors", {}).items():
        texts.append(
            f"bfloat16, {layout} rows: largest error of a log-prob per token {error['logp_per_token']:.1e}, of the "
            f"gradient {error['gradient']:.1e}, from padded rows in float32."
        )
    if capped := checks.get("capped_attention"):
        kernels = (
            (name.removeprefix("sams_"), figures) for name, figures in capped.items() if name[:4] == "sams"
        )
        listed = ", ".join(f"{name} {number(figures['ms'])} ms" for name, figures in kernels)
        texts.append(
            f"attention with capped scores: {listed}; they differ by {capped['largest_difference']:.1e}."
        )
    for stage, figures in sections.get("stages", {}).items():
        if isinstance(figures, dict):
            first = number(figures.get("first_step_seconds"), 1)
            accuracy = figures.get("test_accuracy")
            texts.append(
                f"stage {stage}: {figures['seconds']} s, first step after {first} s"
                + (f", test accuracy {accuracy:.1f}" if accuracy is not None else "")
                + (", FAILED" if "error" in figures else "")
                + "."
            )
    if summary := sections.get("tests", {}).get("summary"):
        texts.append(f"tests: {summary[0]}")
    return texts


def failures(sections: dict[str, Any]) -> list[str]:
    """Errors of the sections, with their text."""
    lines: list[str] = []
    for name, section in sections.items():
        nested = {
            key: value for key, value in section.items() if isinstance(value, dict) and "error" in value
        }
        texts = [section[key] for key in ("error", "errors_error", "capped_error") if key in section]
        texts += [f"{key}: {value['error']}" for key, value in nested.items()]
        if not texts and "status" in section:
            texts = [f"status {section['status']}: {section.get('log', '')}"]
        for text in texts:
            lines += [f"### {name}", "", "```", str(text), "```", ""]
    return ["", "## Failures", "", *lines] if lines else []
