"""Rates at which training would ruin a pretrained model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sams.study.study import Study

# Usual rates are 5 to 60 times lower: SFT 2e-5 and DPO 5e-7 (SimPO, arXiv 2405.14734, 7 to 8 B), with adapters 2e-4
# and 5e-6. A fresh model of a million weights wants 1e-3.
HIGHEST = {("sft", False): 1e-4, ("sft", True): 2e-3, ("preference", False): 1e-5, ("preference", True): 3e-4}


def rates_to_check(study: Study) -> list[str]:
    """Return a sentence for each training of a study whose rate is one for fresh models, though its model is none."""
    if study.model.path is None or study.rehearse:
        return []
    trainings = {
        method: study.preference_of(method)
        for method in study.preference_methods
        if study.model_of(method).path is not None
    }
    rates: dict[tuple[str, bool, float], str] = {}
    for kind, key, training in [
        *([("sft", "sft", study.sft)] if study.sft is not None else []),
        *(
            ("preference", f"preference (method {method})", training)
            for method, training in trainings.items()
        ),
    ]:
        adapted = training.lora is not None
        if training.learning_rate > HIGHEST[kind, adapted]:
            rates.setdefault((kind, adapted, training.learning_rate), key)
    return [
        f"{key}: learning rate {rate:g} is one for fresh weights; {'adapters' if adapted else 'all weights'} of the "
        f"pretrained {study.model.path} usually want {HIGHEST[kind, adapted] / 10:g} or less"
        for (kind, adapted, rate), key in rates.items()
    ]
