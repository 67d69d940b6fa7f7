"""Groups of settings of a study and of recipes, typed and validated."""

from sams.study.settings.base import Count, Name, Positive, Settings, Share
from sams.study.settings.benchmarks import (
    MT_BENCH_TEMPERATURES,
    AlpacaEval,
    Benchmarks,
    Decoding,
    Judge,
    ModelDecoding,
    MtBench,
    OnPolicy,
    OnPolicyDecoding,
    RewardScore,
    Samples,
    WorldAccuracy,
)
from sams.study.settings.data import Data, Form, World
from sams.study.settings.model import Export, MethodModel, Model, ModelSource
from sams.study.settings.paper import Paper
from sams.study.settings.scheduling import MethodScheduler, Scheduler
from sams.study.settings.training import (
    Launch,
    Lora,
    Method,
    MicroBatch,
    Preference,
    PreferenceKeys,
    Pretrain,
    Ratio,
    Sft,
    Training,
)

__all__ = [
    "MT_BENCH_TEMPERATURES",
    "AlpacaEval",
    "Benchmarks",
    "Count",
    "Data",
    "Decoding",
    "Export",
    "Form",
    "Judge",
    "Launch",
    "Lora",
    "Method",
    "MethodModel",
    "MethodScheduler",
    "MicroBatch",
    "Model",
    "ModelDecoding",
    "ModelSource",
    "MtBench",
    "Name",
    "OnPolicy",
    "OnPolicyDecoding",
    "Paper",
    "Positive",
    "Preference",
    "PreferenceKeys",
    "Pretrain",
    "Ratio",
    "RewardScore",
    "Samples",
    "Scheduler",
    "Settings",
    "Sft",
    "Share",
    "Training",
    "World",
    "WorldAccuracy",
]
