"""A pytest plugin for mutation testing: imports what tests import late.

mutmut forks a process for each mutant from one that has collected the tests: what is imported there is imported once.
"""

import importlib

for name in (
    "accelerate",
    "datasets",
    "hypothesis",
    "peft",
    "pyarrow.parquet",
    "scipy.stats",
    "torch._dynamo",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "transformers.models.llama.modeling_llama",
    "trl.experimental.cpo",
    "trl.experimental.orpo",
    "trl.trainer.dpo_trainer",
):
    importlib.import_module(name)
