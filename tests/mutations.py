"""Deliberate faults, one at a time, and the tests that notice them.

    python -m tests.mutations [WORD ...]

Each fault is put into a copy of the package, on which a few named tests run. Prints a Markdown table of faults and
the tests that failed; exits 1 where a fault goes unnoticed, a row no longer fits the code, or the tests fail
without a fault. With words, only faults whose names contain one of them are tried.
"""

import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

COPIED = ("sams", "benchmarks", "tests", "config", "workflow", "pyproject.toml")
# Imported once, here; every run of tests is a fork. Nothing of the package is among them.
HEAVY = (
    "accelerate",
    "datasets",
    "hypothesis",
    "pyarrow.parquet",
    "pytest",
    "scipy.stats",
    "torch.distributed.checkpoint.state_dict",
    "transformers.models.llama.modeling_llama",
)
LOG = "log"
SECONDS = 300
"""A run of tests that takes longer hangs: that is noticed too."""


@dataclass(frozen=True)
class Fault:
    """A fault: in a file below sams/, `old`, which occurs there once, becomes `new`.

    `tests` are pytest's names of the tests to run, below tests/.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


REWARDS = "scheduling/test_rewards.py::test_"
SCHEDULER = "scheduling/test_scheduler.py::test_"
SELECTORS = "scheduling/test_selectors.py::test_"
BAD_ENDPOINTS = "judge/test_bad_endpoints.py::test_"
BASELINES = "scheduling/test_baselines.py::test_"
UPDATES = "training/test_updates.py::test_"
POOL = "scheduling/test_pool.py::test_"
PRECISION = "training/test_precision.py::test_"
SAMS_SETTINGS = "scheduling/test_sams_settings.py::test_"
ANY_SETTING = f"{SAMS_SETTINGS}every_setting_acts_as_the_equations_say"
POLICY = "policy/test_policy.py::test_"
DROPOUT = "policy/test_dropout.py::test_"
PASSES = "training/test_passes.py::test_"
ROWS = "policy/test_rows.py::test_"
PACKING = "policy/test_packing.py::test_"
TUNING = "training/test_tuning.py::test_"
OUTPUT = "policy/test_output.py::test_"
TRL_PACKING = "trl/test_packing.py::test_"
AGREEMENT = "training/test_agreement.py::test_"
BATCHES = "training/test_batches.py::test_"
RUNS = "training/test_runs.py::test_"
SHARDING = "training/test_sharding.py::test_"
CHECKPOINTS = "training/test_checkpoints.py::test_"
OPTIONS = "training/test_options.py::test_"
LOSSES = "losses/test_losses.py::test_"
EXPORT = "training/test_export.py::test_"
PAPER = "tables/test_paper_table.py"
VERIFY = "tables/test_verify.py"
TRAJECTORY = "training/test_trajectory.py::test_fifty_rounds_follow_the_reference_implementation"
RESUMED = f"{RUNS}sigterm_saves_and_the_same_command_ends_bitwise_where_an_undisturbed_run_ends[preference]"

DATA = "data/test_"
TRL = "trl/test_"

FAULTS = [
    Fault(
        "with TRL the loss is not scaled to the chosen pairs",
        "trl/trainer.py",
        "loss = loss * (whole / self._chosen)",
        "pass",
        (f"{TRL}trainer.py::test_any_number_of_pairs",),
    ),
    Fault(
        "with TRL the empty micro-batches come last",
        "trl/schedule.py",
        "return [0] * (parts - len(sizes)) + sizes",
        "return sizes + [0] * (parts - len(sizes))",
        (f"{TRL}trainer.py::test_empty_micro_batches_come_first", f"{TRL}distributed.py"),
    ),
    Fault(
        "with TRL each process trains on its own choice",
        "trl/schedule.py",
        "return Choice.from_rows(broadcast(choice.rows(n).to(self.trainer.accelerator.device)))",
        "return choice",
        (f"{TRL}distributed.py",),
    ),
    Fault(
        "with TRL K is no multiple of the processes",
        "trl/schedule.py",
        "nearest_multiple(self.ratio * candidates, self.world)",
        "round(self.ratio * candidates)",
        (f"{TRL}distributed.py",),
    ),
    Fault(
        "with TRL the candidates are in the order of the processes",
        "trl/scoring.py",
        "order = gathered(trainer, rounds).argsort(stable=True)",
        "order = torch.arange(len(gathered(trainer, rounds)))",
        (f"{TRL}distributed.py",),
    ),
    Fault(
        "with TRL the reference is computed again",
        "trl/trainer.py",
        'if "reference_chosen" in batch.values:',
        "if False:",
        (f"{TRL}features.py::test_no_pair_is_computed_twice",),
    ),
    Fault(
        "with TRL a label changes the sign of no pair",
        "trl/losses.py",
        "rows = torch.arange(2 * pairs).roll(pairs)",
        "rows = torch.arange(2 * pairs)",
        (f"{TRL}losses.py::test_weights_labels_and_betas_of_pairs",),
    ),
    Fault(
        "with TRL a resumed selector is a new one",
        "trl/schedule.py",
        'self.selector.load_state_dict(state["state"])',
        "pass",
        (f"{TRL}resume.py::test_the_step_after_a_checkpoint_is_the_same",),
    ),
    Fault(
        "with TRL contexts are means over prompts too",
        "trl/forward.py",
        'is_completion = inputs["labels"] != -100',
        'is_completion = inputs["attention_mask"] == 1',
        (f"{TRL}features.py::test_contexts_are_those_of_the_study",),
    ),
    Fault(
        "a tie of rewards counts as a loss",
        "scoring/wins.py",
        "(1 + (reward > base[name]) - (reward < base[name]))",
        "(2 * (reward > base[name]))",
        ("scoring/test_reward_model.py",),
    ),
    Fault(
        "a prompt that repeats is answered again",
        "data/prompts.py",
        "seen.add(digest)",
        "pass",
        ("generation/test_prompts.py",),
    ),
    Fault(
        "a model that says nothing of sampling samples",
        "generation/decode.py",
        'if own.get("do_sample") else 0.0',
        'if own.get("do_sample", True) else 0.0',
        ("generation/test_decode.py",),
    ),
    Fault(
        "a tie counts as an error",
        "training/tasks/preference.py",
        "(chosen >= rejected)",
        "(chosen > rejected)",
        ("training/test_passes.py::test_a_tie_counts_one_half",),
    ),
    Fault(
        "all pairs are recorded as selected",
        "training/pairs.py",
        "selected[step.chosen] = 1",
        "selected[:] = 1",
        ("training/test_pairs.py",),
    ),
    Fault(
        "a resumed run keeps the rows after its checkpoint",
        "training/pairs.py",
        "self._file.truncate(rows * ROW.itemsize)",
        "pass",
        ("training/test_pairs.py",),
    ),
    Fault(
        "test accuracies are of the first evaluation",
        "tables/pairs.py",
        'test["step"].max()',
        'test["step"].min()',
        ("tables/test_comparisons.py",),
    ),
    Fault(
        "a page shows data as it was before labels were flipped",
        "tables/pairs.py",
        'bool(flipped) != bool(row["flipped"])',
        "False",
        ("tables/test_pairs.py",),
    ),
    Fault(
        "rows: unknown columns are harmless",
        "data/columns.py",
        "        if key in ignored or is_empty(value)",
        "        if True or is_empty(value)",
        (f"{DATA}columns.py::test_what_would_be_lost_is_refused",),
    ),
    Fault(
        "rows: the system column is dropped",
        "data/forms.py",
        "            system = given\n",
        "            pass\n",
        (f"{DATA}columns.py::test_a_pair_holds_all_that_its_row_says",),
    ),
    Fault(
        "rows: messages in text are learned literally",
        "data/messages.py",
        "        if is_list or {*found} in",
        "        if False and {*found} in",
        (f"{DATA}columns.py::test_a_pair_holds_all_that_its_row_says",),
    ),
    Fault(
        "rows: a column that says otherwise is ignored",
        "data/forms.py",
        "        if not agrees:\n",
        "        if False:\n",
        (f"{DATA}columns.py::test_what_would_be_lost_is_refused",),
    ),
    Fault(
        "data: the split draws pairs, not prompts",
        "data/prepare.py",
        "is_held_out(each.prompt, share, data.split_seed)",
        "is_held_out([{'role': 'user', 'content': each.id}], share, data.split_seed)",
        (f"{DATA}prepare.py::test_a_share_of_the_prompts_is_held_out",),
    ),
    Fault(
        "data: contradictions are not counted",
        "data/prepare.py",
        "bytes.fromhex(record.opposite_id) in seen",
        "bytes.fromhex(record.id) not in seen",
        (f"{DATA}prepare.py::test_contradictions_are_counted_and_said",),
    ),
    Fault(
        "templates: text may be lost",
        "data/templates.py",
        "        if not found:\n",
        "        if False:\n",
        (f"{DATA}templates.py::test_a_template_that_loses_text_is_refused",),
    ),
    Fault(
        "templates: the date is today's",
        "data/templates.py",
        '    if "strftime_now" not in template:\n',
        "    if True:\n",
        (f"{DATA}templates.py::test_the_date_is_that_of_the_settings",),
    ),
    Fault(
        "templates: an answer has two think blocks",
        "data/templates.py",
        "        if not self._lead.strip() and not left_out and not THOUGHT.search(response):",
        "        if True:",
        (f"{DATA}templates.py::test_a_think_block_is_what_the_template_renders",),
    ),
    Fault(
        "templates: only EOS ends an answer",
        "data/templates.py",
        "    if found and after.strip():\n",
        "    if False:\n",
        (
            f"{DATA}templates.py::test_an_answer_ends_where_the_template_ends_the_turn",
            "generation/test_decode.py::test_an_answer_ends_where_the_template_ends_a_turn",
        ),
    ),
    Fault(
        "`reference_gap` keeps the pairs that the reference doubts",
        "scheduling/selectors/reference_gap.py",
        "agreement = chosen - rejected",
        "agreement = rejected - chosen",
        (f"{BASELINES}reference_gap_keeps_pairs_with_whose_label_the_reference_agrees",),
    ),
    Fault(
        "`small_loss` takes the last margin for the average",
        "scheduling/selectors/small_loss.py",
        "share = 1 / self.count[numbers]",
        "share = torch.ones(len(numbers))",
        (f"{BASELINES}small_loss_averages_the_margins_of_each_pair",),
    ),
    Fault(
        "Dr. DPO's weights are not normalised",
        "scheduling/selectors/values.py",
        "positive(len(log_weights) * log_weights.softmax(0))",
        "positive(log_weights.exp())",
        (f"{BASELINES}dr_dpo_has_the_gradient_of_the_published_objective",),
    ),
    Fault(
        "beta-DPO's margins have the factor beta",
        "scheduling/selectors/beta_dpo.py",
        " / self.setup.beta\n        if",
        "\n        if",
        (f"{BASELINES}beta_dpo_follows_the_authors_code",),
    ),
    Fault(
        "`lossdiff_irm` takes the union of the intervals",
        "scheduling/selectors/lossdiff_irm.py",
        ".amax(dim=0)",
        ".amin(dim=0)",
        (f"{BASELINES}lossdiff_irm_is_the_narrowest_intersection_of_two_middle_intervals",),
    ),
    Fault(
        "delta and 1 - delta are swapped in `sams`",
        "scheduling/selectors/sams.py",
        "settings.delta, view.margin_rounding",
        "1 - settings.delta, view.margin_rounding",
        (ANY_SETTING,),
    ),
    Fault(
        "gamma of `sams` is ignored",
        "scheduling/selectors/sams.py",
        "rewards = reward(batch, last.samples, self.gamma).float()",
        "rewards = reward(batch, last.samples, 0.5).float()",
        (ANY_SETTING,),
    ),
    Fault(
        "`uncertainty: mean` is taken as sum",
        "scheduling/selectors/base.py",
        'if uncertainty == "sum" or self.chosen_tokens is None:',
        'if uncertainty in ("sum", "mean") or self.chosen_tokens is None:',
        (ANY_SETTING,),
    ),
    Fault(
        "`updates_per_round` is ignored",
        "scheduling/scheduler.py",
        "for _ in range(self.settings.updates_per_round):",
        "for _ in range(1):",
        (ANY_SETTING,),
    ),
    Fault(
        "the scheduler's Adam has no weight decay",
        "scheduling/scheduler.py",
        "weight_decay=settings.weight_decay,",
        "weight_decay=0.0,",
        (ANY_SETTING,),
    ),
    Fault(
        "an untrained scheduler draws at random for ever",
        "scheduling/selectors/sams.py",
        "        self.trained = True\n",
        "",
        (ANY_SETTING,),
    ),
    Fault(
        "the pretrained f_S' is not loaded",
        "scheduling/scheduler.py",
        '        self.exploration.load_state_dict(weights["exploration"])\n',
        "",
        (f"{SAMS_SETTINGS}both_pretrained_networks_are_loaded",),
    ),
    Fault(
        "choices: labels are left out of the loss",
        "training/tasks/preference.py",
        "        if labels is not None:\n",
        "        if labels is None:\n",
        ("training/test_choices.py::test_the_gradient_is_that_of_the_formula",),
    ),
    Fault(
        "choices: a micro-batch takes the first weights",
        "training/passes.py",
        "choice.take(positions)",
        "choice.take(list(range(len(positions))))",
        ("training/test_choices.py::test_the_gradient_is_that_of_the_formula",),
    ),
    Fault(
        "choices: the counts of pairs are not in the checkpoint",
        "training/loop.py",
        '"counts": {} if selecting is None else selecting.counts,',
        '"counts": {} if selecting is None else {k: v * 0 for k, v in selecting.counts.items()},',
        ("training/test_choices.py::test_a_selector_of_ones_own_trains_and_resumes_bitwise",),
    ),
    Fault(
        "cache key: files next to a selector of one's own are left out",
        "runtime/code.py",
        "_base(top) != _base(own)",
        "top != own",
        ("runtime/test_code.py::test_the_code_of_a_selector_of_ones_own_is_in_the_cache_key",),
    ),
    Fault(
        "cache key: the code of a job's own loss is left out",
        "study/code.py",
        "return [*_loss(training), training.selector_entry.module]",
        "return [training.selector_entry.module]",
        ("runtime/test_code.py::test_a_job_runs_its_own_loss_and_its_own_selector_alone",),
    ),
    Fault(
        "cache key: a docstring counts as code",
        "runtime/code.py",
        "return None if is_text or _is_log_call(node.value)",
        "return None if _is_log_call(node.value)",
        ("runtime/test_code.py::test_the_digest_of_a_module_is_that_of_what_it_computes",),
    ),
    Fault(
        "cache key: a remembered digest outlives a change of the file",
        "runtime/digests.py",
        "case [known, value] if known == state:",
        "case [known, value] if known:",
        ("runtime/test_digests.py::test_an_unchanged_file_is_read_once",),
    ),
    Fault(
        "the checkpoint of a run with other code is deleted",
        "training/checkpoints.py",
        "            if other != newest:\n",
        "            if other:\n",
        ("faults/test_other_code.py::test_the_checkpoint_of_other_code_is_kept_and_named",),
    ),
    Fault(
        "the sign of r_B is turned round",
        "scheduling/rewards.py",
        "previous_loss - loss",
        "loss - previous_loss",
        (
            f"{REWARDS}an_improved_loss_raises_the_batch_reward",
            f"{REWARDS}batch_reward_equals_the_printed_form",
        ),
    ),
    Fault(
        "the mean is taken over n instead of K",
        "training/passes.py",
        "total = sum(task.weights[item] for item in items)",
        "total = sum(task.weights)",
        (
            f"{PASSES}gradient_is_that_of_the_mean_over_the_selected",
            f"{RUNS}the_gradient_norm_is_that_of_the_mean_over_the_selected",
        ),
    ),
    Fault(
        "padding and prompt count in the context",
        "policy/policy.py",
        'embedding_bag(rows.answers, states, starts, mode="mean")',
        'embedding_bag(rows.answers * 0 + len(states) - 1, states, starts, mode="mean")',
        (
            f"{POLICY}padding_and_batch_mates_change_neither_logps_nor_contexts",
            f"{POLICY}contexts_are_means_over_completion_tokens_of_every_block",
        ),
    ),
    Fault(
        "r_S passes a second sigmoid",
        "scheduling/rewards.py",
        "torch.sigmoid(sample)",
        "torch.sigmoid(torch.sigmoid(sample))",
        (f"{REWARDS}one_sigmoid_each", TRAJECTORY),
    ),
    Fault(
        "the subset is sampled by soft-max, not Top-K",
        "scheduling/selectors/base.py",
        "return scores.cpu().argsort(descending=True, stable=True)[:k].sort().values",
        "return scores.cpu().double().softmax(0).multinomial(k).sort().values",
        (
            f"{SELECTORS}a_perfect_scorer_is_never_random",
            f"{SELECTORS}sams_takes_the_top_k_of_its_scores",
            f"{SELECTORS}the_global_random_numbers_are_left_alone",
        ),
    ),
    Fault(
        "no backward: the policy never gets a gradient",
        "training/passes.py",
        "workers.accelerator.backward(loss)",
        "pass",
        (
            f"{PASSES}gradient_is_that_of_the_mean_over_the_selected",
            f"{RUNS}training_moves_the_policy_and_reports",
        ),
    ),
    Fault(
        "a stale reference is not noticed at step 1",
        "training/preference.py",
        "if is_own:",
        "if not is_own:",
        (f"{OPTIONS}a_reference_that_is_not_the_policys_own_is_noticed_before_the_first_step",),
    ),
    Fault(
        "reference log-probs of another model are accepted",
        "training/preference.py",
        "if not own and not training.other_reference:",
        "if False:",
        (f"{OPTIONS}reference_log_probs_of_another_model_are_refused_unless_they_are_meant",),
    ),
    Fault(
        "cached references are taken by position, not by pair id",
        "training/tasks/preference.py",
        "[reference[pair] for pair in self.ids]",
        "list(reference.values())",
        (f"{PASSES}a_cached_reference_equals_one_computed_on_line_in_any_order_of_the_pairs",),
    ),
    Fault(
        "a cache of other pairs is accepted",
        "training/tasks/preference.py",
        'if wrong or len(cached) != len(table["id"]):',
        "if not cached:",
        (
            f"{OPTIONS}a_cache_of_other_pairs_is_refused_and_its_order_does_not_matter",
            f"{RUNS}a_reference_of_other_pairs_is_refused",
        ),
    ),
    Fault(
        "a model's own dropout stays on",
        "policy/model.py",
        "config=without_dropout(config)",
        "config=config",
        (f"{DROPOUT}a_model_in_train_equals_transformers_own_in_eval[falcon]",),
    ),
    Fault(
        "routers sample experts in training",
        "policy/policy.py",
        "self.model.eval()",
        "self.model.train(mode)",
        (f"{DROPOUT}a_model_in_train_equals_transformers_own_in_eval[phimoe]",),
    ),
    Fault(
        "adapters on tied weights are accepted",
        "policy/model.py",
        "if both := sorted(tied & set(adapted.targeted_module_names)):",
        "if both := []:",
        ("training/test_options.py::test_adapters_of_the_output_layer_are_exported_right_or_refused",),
    ),
    Fault(
        "a config ties two different weights of its files",
        "policy/model.py",
        "text.tie_word_embeddings = model.config.tie_word_embeddings = False",
        "pass",
        ("bad_input/test_start_models.py::test_two_weights_that_the_config_ties_stay_two",),
    ),
    Fault(
        "a masked language model is trained",
        "policy/model.py",
        'problem = "is a masked language model"',
        "problem = None",
        ("bad_input/test_start_models.py",),
    ),
    Fault(
        "a saved config has no dropout",
        "policy/dropout.py",
        "model.user_rates = rates_of(own)",
        "model.user_rates = {}",
        (f"{DROPOUT}a_fresh_model_has_no_dropout_and_keeps_its_rates",),
    ),
    Fault(
        "Adam's moments are reset in each round",
        "scheduling/scheduler.py",
        "            for optimiser, loss in zip(self.optimisers, losses, strict=True):\n",
        "            for optimiser, loss in zip(self.optimisers, losses, strict=True):\n"
        "                optimiser.state.clear()\n",
        (f"{SCHEDULER}adam_moments_persist_over_rounds", TRAJECTORY),
    ),
    Fault(
        "a newcomer overwrites its record in the replay file",
        "scheduling/pool.py",
        "                slot = int(torch.randint(self.filled, (), generator=self.generator))\n",
        "                slot = int(torch.randint(self.filled, (), generator=self.generator))\n"
        "                with self._path(slot % self.shards).open('r+b') as stream:\n"
        "                    stream.seek(int(self.slots[slot]) * self._size())\n"
        "                    stream.write(rows[row].numpy().tobytes())\n"
        "                continue\n",
        (
            f"{POOL}what_follows_a_checkpoint_leaves_its_bytes_alone",
            f"{POOL}a_resumed_pool_goes_on_as_if_undisturbed",
        ),
    ),
    # What the scheduler learns from, and how.
    Fault(
        "r_B is computed as it is printed, and overflows",
        "scheduling/rewards.py",
        "math.copysign(-math.expm1(-abs(difference)), difference)",
        "(math.exp(previous_loss) - math.exp(loss)) / math.exp(max(previous_loss, loss))",
        (f"{REWARDS}batch_reward_does_not_overflow",),
    ),
    Fault(
        "predictions (n, 1) are compared with rewards (n,)",
        "scheduling/scheduler.py",
        "(self.exploitation(contexts)[0] - rewards)",
        "(self.exploitation(contexts)[0][:, None] - rewards)",
        (f"{SCHEDULER}the_nets_learn_to_tell_two_clusters_apart",),
    ),
    Fault(
        "min-max divides by a range of 0",
        "scheduling/rewards.py",
        "if high - low <= tolerance:",
        "if high - low < 0:",
        (
            f"{REWARDS}min_max_of_equal_values_is_a_half",
            f"{REWARDS}sample_reward_of_a_first_batch_is_finite",
        ),
    ),
    Fault(
        "the uncertainty term has the wrong sign",
        "scheduling/rewards.py",
        "(1 - min_max(chosen_logps.double()))",
        "min_max(chosen_logps.double())",
        (f"{REWARDS}sample_reward_by_hand", f"{SELECTORS}reward_takes_the_top_k_by_eq_7"),
    ),
    Fault(
        "both terms of pretraining's r_S are the same quantity",
        "training/watching.py",
        'margins=-values["loss"],\n            chosen_logps=values["logps/chosen"],',
        'margins=-values["loss"],\n            chosen_logps=-values["loss"],',
        (f"{PASSES}the_view_of_a_single_response_still_tells_samples_apart",),
    ),
    Fault(
        "r_B compares two micro-batches under the same weights",
        "scheduling/selectors/sams.py",
        "batch_reward(last.loss, view.losses.double().mean().item())",
        "batch_reward(*(half.double().mean().item() for half in view.losses.chunk(2)))",
        (
            f"{SELECTORS}rewards_are_those_of_the_previous_round",
            f"{RUNS}there_is_one_batch_reward_per_optimiser_step",
        ),
    ),
    Fault(
        "no lag: this round's arms get this round's r_B",
        "training/loop.py",
        "step.metrics |= selector.observe(view)",
        "selector.accept(checked(selector.choose(view, selecting.selection.size(step.number)), 10**6, 10**6))\n"
        "    step.metrics |= selector.observe(view)",
        (f"{RUNS}there_is_one_batch_reward_per_optimiser_step", TRAJECTORY),
    ),
    Fault(
        "f_S' is fitted to what f_S misses now, not at scoring",
        "scheduling/scheduler.py",
        "(rewards - values)).square()",
        "(rewards - self.exploitation(contexts)[0].detach())).square()",
        (
            f"{SCHEDULER}f_s_is_fitted_to_the_reward_and_exploration_to_what_f_s_missed_when_it_scored",
            TRAJECTORY,
        ),
    ),
    Fault(
        "the score leaves f_S' out",
        "scheduling/scheduler.py",
        "values + self.settings.exploration * self.exploration(hidden)",
        "values + 0 * self.exploration(hidden)",
        (f"{SCHEDULER}the_score_adds_lambda_times_the_exploration_net_on_block_means_of_the_activations",),
    ),
    Fault(
        "the nets are fitted without the replay pool",
        "scheduling/scheduler.py",
        "if replayed is not None:",
        "if replayed is None and self.pool is None:",
        (TRAJECTORY,),
    ),
    Fault(
        "the scheduler's weights come from the global random numbers",
        "scheduling/scheduler.py",
        "with torch.random.fork_rng(devices=[]):",
        "if self.settings:",
        (f"{SCHEDULER}building_and_learning_leave_the_random_state_alone",),
    ),
    Fault(
        "the replay pool draws from the global random numbers",
        "scheduling/pool.py",
        "torch.randperm(self.filled, generator=self.generator)",
        "torch.randperm(self.filled)",
        (f"{SCHEDULER}building_and_learning_leave_the_random_state_alone", TRAJECTORY),
    ),
    Fault(
        "the layer encoder sees a set of layers, not their order",
        "scheduling/networks.py",
        "states + self.position(order)",
        "states + 0 * self.position(order)",
        (f"{SCHEDULER}the_encoder_sees_the_order_of_the_layers",),
    ),
    Fault(
        "the encoder is trained in preference training",
        "scheduling/scheduler.py",
        "requires_grad_(train_encoder)",
        "requires_grad_(True)",
        (f"{SCHEDULER}the_frozen_encoder_stays_and_the_rest_moves",),
    ),
    # The policy's update.
    Fault(
        "the update takes all n pairs",
        "training/updates.py",
        "step.trained = step.batch if self.complete_batch else step.chosen_items",
        "step.trained = step.batch",
        (f"{RUNS}training_moves_the_policy_and_reports", TRAJECTORY),
    ),
    Fault(
        "the gradient is not cleared between steps",
        "training/updates.py",
        "self.optimiser.zero_grad()",
        "_ = self.optimiser.zero_grad",
        (TRAJECTORY,),
    ),
    Fault(
        "each micro-batch has its own mean",
        "training/passes.py",
        '(values["loss"] * weights).sum() * (workers.world / total)',
        'values["loss"].mean() * (workers.world * micro_batch / len(items))',
        (f"{PASSES}micro_batches_change_neither_loss_nor_gradient",),
    ),
    Fault(
        "each process has its own mean",
        "training/passes.py",
        "    total = sum(task.weights[item] for item in items)\n",
        "    mine = sum(deal([task.lengths[item] for item in items], workers.world, micro_batch)[workers.rank], [])\n"
        "    total = workers.world * max(1, sum(task.weights[items[at]] for at in mine))\n",
        (f"{PASSES}the_processes_average_is_the_gradient_of_the_mean_over_all",),
    ),
    Fault(
        "the factor for the processes' average is left out",
        "training/passes.py",
        "(workers.world / total)",
        "(1 / total)",
        (f"{PASSES}the_processes_average_is_the_gradient_of_the_mean_over_all",),
    ),
    Fault(
        # What it is told before the forward pass is then what it was told for the micro-batch before.
        "DDP is told after the forward pass whether to exchange gradients",
        "training/passes.py",
        "workers.exchange_gradients(policy, number == len(mine), each=sync_each)",
        "workers.exchange_gradients(policy, number == 1, each=sync_each)",
        (f"{RUNS}two_processes_equal_one[2-ddp]",),
    ),
    Fault(
        "scores come back in the order they were dealt",
        "training/passes.py",
        "index = torch.tensor(self.positions, dtype",
        "index = torch.tensor(sorted(self.positions), dtype",
        (f"{PASSES}the_scoring_pass_reports_in_the_order_asked",),
    ),
    Fault(
        "log-probs are shifted by one token",
        "policy/rows.py",
        "        answers - 1,",
        "        answers,",
        (
            f"{POLICY}chunked_logps_and_their_gradients_equal_the_naive_ones[512-1073741824-llama]",
            f"{ROWS}both_layouts_learn_the_same_tokens_from_the_tokens_before_them",
        ),
    ),
    Fault(
        # Within a pair the prompt's log-probs cancel, up to rounding: DPO's gradient would not show it.
        "prompt tokens count",
        "policy/rows.py",
        "indices.append(torch.arange(row * longest + len(prompt), row * longest + end))",
        "indices.append(torch.arange(row * longest + 1, row * longest + end))",
        (f"{ROWS}both_layouts_learn_the_same_tokens_from_the_tokens_before_them",),
    ),
    Fault(
        "a prompt's last token counts",
        "policy/rows.py",
        "answers = order[len(order) - int(counts.sum()) :]",
        "answers = order[len(order) - int(counts.sum()) :] - 1",
        (f"{ROWS}both_layouts_learn_the_same_tokens_from_the_tokens_before_them",),
    ),
    Fault(
        "what a class does before its output layer is left out",
        "policy/output.py",
        "_own_forward(model, states[None], keep)",
        "keep(states[None])",
        (f"{OUTPUT}log_probs_and_gradients_are_the_class_s_own[minicpm3]",),
    ),
    Fault(
        "logits are not scaled",
        "policy/output.py",
        "logits = logits * self.scale",
        "logits = logits * 1",
        (f"{OUTPUT}log_probs_and_gradients_are_the_class_s_own[granite]",),
    ),
    Fault(
        "logits are not capped",
        "policy/output.py",
        "return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap",
        "return logits",
        (f"{OUTPUT}log_probs_and_gradients_are_the_class_s_own[gemma2]",),
    ),
    Fault(
        "a learnt factor of the logits is taken as fixed",
        "policy/output.py",
        "known = not found.requires_grad and",
        "known =",
        (f"{OUTPUT}what_is_no_scale_or_cap_is_refused_by_name[Learnt]",),
    ),
    Fault(
        "log-probs are not compared with the class's own before step 1",
        "training/agreement.py",
        "if not difference <= LARGEST[precision] * spread:",
        "if False:",
        (f"{AGREEMENT}other_logits_and_random_ones_are_refused_by_name",),
    ),
    Fault(
        "a model that is random is trained",
        "training/agreement.py",
        "if moved > (0 if exact else expected.limit):",
        "if False:",
        (f"{AGREEMENT}other_logits_and_random_ones_are_refused_by_name",),
    ),
    Fault(
        "a model that sees the tokens it predicts is trained",
        "training/agreement.py",
        "if moved > (limit if has_experts(config) else 0):",
        "if False:",
        (f"{AGREEMENT}a_model_that_sees_the_tokens_it_predicts_is_refused",),
    ),
    Fault(
        "a window that does not arrive at the attention is lost in packed rows",
        "training/layout.py",
        "return None if arrived == window else",
        "return None if True else",
        (
            f"{AGREEMENT}a_window_is_lost_where_the_attention_gets_another",
            f"{AGREEMENT}rows_are_packed_only_where_that_is_right_in_both_precisions[qwen2_moe]",
        ),
    ),
    Fault(
        "nothing but figures shows that a layer mixes the items of a packed row",
        "training/layout.py",
        "if not _poisoned(policy, items, workers).isfinite().all():",
        "if False:",
        (f"{AGREEMENT}a_leak_that_bfloat16_rounds_away_in_fresh_weights_is_found",),
    ),
    Fault(
        "under TRL, checkpointed layers are recomputed with the attention of padded rows",
        "trl/packed.py",
        'if "branches" not in named:',
        "if True:",
        (f"{TRL_PACKING}steps_and_metrics_equal_those_of_padded_rows[plain]",),
    ),
    Fault(
        "under TRL, tokens that a pair shares are those of the chosen sequence alone",
        "trl/packed.py",
        "index[pairs + item[stem], position[stem]] =",
        "index[item[stem], position[stem]] =",
        (f"{TRL_PACKING}values_and_gradients_equal_those_of_padded_rows[llama-keep_start]",),
    ),
    Fault(
        "under TRL, values of packed tokens are one place off",
        "trl/packed.py",
        "return rows, row * (longest - 1) + column",
        "return rows, row * (longest - 1) + column - 1",
        (f"{TRL_PACKING}values_and_gradients_equal_those_of_padded_rows[llama-keep_start]",),
    ),
    Fault(
        "under TRL, attention dropout is not tried",
        "trl/packing.py",
        "wrapped.train()  # whose",
        "wrapped.eval()  # whose",
        (f"{TRL_PACKING}models_and_settings_that_cannot_be_packed_are_padded_with_a_line",),
    ),
    Fault(
        "a class that ignores the given positions is packed",
        "training/layout.py",
        "if first == [sums for _, _, sums in calls]:",
        "if False:",
        (f"{AGREEMENT}a_class_with_positions_of_its_own_is_not_packed",),
    ),
    Fault(
        "rotary positions depend on the longest sequence of a batch",
        "training/agreement.py",
        "if longest > original:",
        "if False:",
        (f"{AGREEMENT}positions_that_depend_on_the_longest_sequence_of_a_batch_are_refused",),
    ),
    Fault(
        "in a packed row a completion's first token is predicted by its sibling's last",
        "policy/rows.py",
        "torch.where(first, last[item[answers]], answers - 1)",
        "answers - 1",
        (
            f"{ROWS}both_layouts_learn_the_same_tokens_from_the_tokens_before_them",
            f"{PACKING}packed_pairs_equal_padded_ones[llama]",
        ),
    ),
    Fault(
        "in a packed row positions go on after the first completion",
        "policy/packing.py",
        "position = offset + torch.where(completion > 0, table[item, 0], 0)",
        "position = torch.arange(len(run)) - starts[item, 0]",
        (f"{PACKING}packed_pairs_equal_padded_ones[llama]",),
    ),
    Fault(
        "in a packed row the rejected response does not see the prompt",
        "policy/attention.py",
        "outputs.append(attend(q_own, *seen))",
        "outputs.append(attend(q_own, k_own, v_own))",
        (
            f"{PACKING}packed_pairs_equal_padded_ones[llama]",
            f"{TUNING}rows_are_packed_where_the_model_agrees[llama]",
        ),
    ),
    Fault(
        "in a packed row the sliding window is forgotten",
        "policy/attention.py",
        "own = window if window is not None and window < keys else None",
        "own = None",
        (f"{PACKING}packed_pairs_equal_padded_ones[mistral]",),
    ),
    Fault(
        "in a packed row the cap of Gemma's scores is forgotten",
        "policy/attention.py",
        "scores = torch.tanh(scores / softcap) * softcap + mask",
        "scores = scores + mask",
        (f"{PACKING}packed_pairs_equal_padded_ones[gemma2]",),
    ),
    Fault(
        "a model that cannot pack packs all the same",
        "training/layout.py",
        "        if cause is None:\n",
        "        if cause is None or cause:\n",
        (f"{TUNING}a_model_that_cannot_pack_is_told_of_and_computes_padded_rows[opt]",),
    ),
    Fault(
        "a leak between the sequences of a packed row is within bfloat16's tolerance",
        "training/layout.py",
        "if moved > (expected.limit if has_experts(config) else 0):",
        "if moved > expected.limit:",
        (f"{TUNING}a_leak_within_the_tolerance_of_bfloat16_is_noticed",),
    ),
    Fault(
        "queries of the variable-length kernel stay in float32 under autocast",
        "policy/attention.py",
        "torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype",
        "query.dtype",
        (f"{PACKING}varlen_attention_is_that_of_padded_rows_in_bfloat16[2.13-llama-True]",),
    ),
    Fault(
        "the number of tokens is compiled into a block",
        "policy/compiling.py",
        "dynamic=True",
        "dynamic=False",
        ("policy/test_blocks.py::test_a_block_is_one_graph_for_rows_of_any_length[llama]",),
    ),
    Fault(
        "selective checkpointing recomputes matrix products",
        "policy/blocks.py",
        "    aten.mm.default,\n",
        "",
        ("policy/test_blocks.py::test_selective_checkpointing_keeps_matrix_products_and_attention",),
    ),
    Fault(
        "a resumed run finds out its micro-batches anew",
        "training/loop.py",
        'tuning = Tuning(**state.pop("tuning"))',
        'tuning = Tuning(state.pop("tuning")["packed"], 1, 1, False)',
        (f"{TUNING}a_found_size_is_kept_in_the_result_and_a_resumed_run_takes_it_over",),
    ),
    Fault(
        "a template that forgets the EOS is not mended",
        "data/templates.py",
        "else [*end, eos]",
        "else end",
        ("data/test_templates.py::test_one_bos_and_one_eos",),
    ),
    Fault(
        "bfloat16 runs keep their weights in bfloat16",
        "training/distribution.py",
        "if not any(parameter.is_meta for parameter in policy.parameters()):",
        "if self.precision == 'bfloat16':\n            policy.to(torch.bfloat16)\n        else:",
        ("training/test_master_weights.py",),
    ),
    Fault(
        "one process computes in float32 whatever the precision",
        "training/distribution.py",
        "if self.shards or (trained and",
        "if self.shards or (self.world > 1 and trained and",
        (f"{PRECISION}attention_receives_the_compute_type_and_two_processes_equal_one",),
    ),
    Fault(
        "a step leaves the weights in bfloat16 that it was computed from",
        "training/updates.py",
        "        reshard(policy)\n        vars",
        "        vars",
        (f"{PRECISION}a_pass_after_a_step_sees_the_new_weights",),
    ),
    Fault(
        "adapters are merged into any base",
        "training/export.py",
        "elif base is None or digest_of_model(base) != digest:",
        "elif base is None:",
        ("training/test_options.py::test_adapters_are_merged_into_no_other_base",),
    ),
    Fault(
        "the end of a turn is not among the exported stop ids",
        "training/folder.py",
        "[*given, *stop_ids(tokenizer, date)]",
        "given",
        (f"{EXPORT}settings_of_the_start_model_stay",),
    ),
    Fault(
        "the stop ids of the start model are lost",
        "training/folder.py",
        "[*given, *stop_ids(tokenizer, date)]",
        "stop_ids(tokenizer, date)",
        (f"{EXPORT}settings_of_the_start_model_stay",),
    ),
    Fault(
        "an exported model generates without a cache",
        "training/folder.py",
        'settings["use_cache"] = True',
        'settings["use_cache"] = False',
        (f"{EXPORT}settings_of_the_start_model_stay",),
    ),
    Fault(
        "an exported model has the compute type",
        "training/folder.py",
        "(named or stored_types(start) or [settings.precision])[0]",
        "settings.precision",
        (f"{EXPORT}settings_of_the_start_model_stay",),
    ),
    Fault(
        "an exported tokenizer is saved again",
        "training/folder.py",
        "if not same or",
        "if same or",
        (f"{EXPORT}tokenizer_templates_and_licence_are_copied_byte_for_byte",),
    ),
    Fault(
        "adapters name the copy of their base in the results",
        "training/export.py",
        'if settings.path is None or "trained" in upstream:',
        "if True:",
        (f"{EXPORT}adapters_over_a_model_that_was_trained_name_that_model",),
    ),
    Fault(
        "weights are the owner's alone",
        "runtime/files.py",
        "    apply_umask(folder)\n",
        "",
        ("runtime/test_files.py::test_a_folder_gets_the_permissions_of_the_umask",),
    ),
    Fault(
        "adapters are drawn from the global generator",
        "policy/model.py",
        "            torch.manual_seed(seed)\n            adapted = peft",
        "            adapted = peft",
        ("training/test_options.py::test_adapters_are_drawn_from_the_seed",),
    ),
    Fault(
        "a fused step does not clip",
        "training/distribution.py",
        "((norm + 1e-6) / max_norm).clamp(min=1.0)",
        "norm / norm",
        (f"{PRECISION}a_fused_step_clips_the_gradients_itself[float32]",),
    ),
    Fault(
        "weights are cast again in every micro-batch",
        "training/distribution.py",
        "policy.set_reshard_after_backward(False)",
        "pass",
        (f"{PRECISION}weights_are_cast_once_a_step",),
    ),
    # Losses.
    Fault(
        "the policy's weight decay is ignored",
        "training/updates.py",
        '"weight_decay": weight_decay}',
        '"weight_decay": 0.0}',
        (f"{UPDATES}twenty_steps_are_those_of_trl",),
    ),
    Fault(
        "norms and biases decay",
        "training/updates.py",
        '"weight_decay": 0.0},',
        '"weight_decay": weight_decay},',
        (f"{UPDATES}twenty_steps_are_those_of_trl",),
    ),
    Fault(
        "layers of class LayerNorm decay under names of their own",
        "training/updates.py",
        "get_parameter_names(policy, [nn.LayerNorm], NO_DECAY)",
        "get_parameter_names(policy, [], NO_DECAY)",
        (f"{UPDATES}weights_decay_as_with_transformers",),
    ),
    Fault(
        "the cosine schedule falls to half and stays there",
        "training/updates.py",
        "(1 - math.cos(math.pi * remaining)) / 2",
        "max(0.5, (1 - math.cos(math.pi * remaining)) / 2)",
        (f"{UPDATES}rates_are_those_of_transformers",),
    ),
    Fault(
        "the warm-up is a step ahead of transformers'",
        "training/updates.py",
        "done, warmup = step - 1, ",
        "done, warmup = step, ",
        (f"{UPDATES}rates_are_those_of_transformers", f"{UPDATES}twenty_steps_are_those_of_trl"),
    ),
    Fault(
        "gradients are never clipped",
        "training/updates.py",
        "workers.clip(passes.policy, self.training.max_grad_norm, self.optimiser)",
        "workers.clip(passes.policy, 1e9, self.optimiser)",
        (f"{UPDATES}twenty_steps_are_those_of_trl",),
    ),
    Fault(
        "pretraining turns the margin round",
        "training/watching.py",
        'margins=-values["loss"]',
        'margins=values["loss"]',
        (f"{PASSES}the_view_of_a_single_response_still_tells_samples_apart",),
    ),
    Fault(
        "a tie counts as accurate",
        "training/tasks/preference.py",
        "(chosen > rejected)",
        "(chosen >= rejected)",
        ("training/test_passes.py::test_a_tie_counts_one_half",),
    ),
    Fault(
        "the rounding of bfloat16 margins is that of float32",
        "training/tasks/preference.py",
        "self.rounding = ROUNDING[precision]",
        'self.rounding = ROUNDING["float32"]',
        (f"{PASSES}margins_that_are_rounding_in_bfloat16_do_not_rank_pairs",),
    ),
    Fault(
        "the reference is left out of the loss",
        "losses/base.py",
        "chosen, rejected = chosen - logps.reference_chosen, rejected - logps.reference_rejected",
        "chosen, rejected = chosen - 0, rejected - 0",
        (
            f"{LOSSES}loss_and_gradient_equal_the_hand_form",
            f"{PASSES}policy_equal_to_reference_gives_log_2",
        ),
    ),
    Fault(
        "robust DPO is not divided by 1 - 2 eps",
        "losses/dpo.py",
        "return mixed / (1 - 2 * self.label_smoothing)",
        "return mixed",
        (f"{LOSSES}robust_is_dpo_under_clean_labels_on_average_over_flips",),
    ),
    Fault(
        "R-DPO has the wrong sign",
        "losses/rdpo.py",
        "+ self.alpha * extra_tokens",
        "- self.alpha * extra_tokens",
        (f"{LOSSES}r_dpo_is_lowest_at_the_best_policy_for_reward_less_alpha_per_token",),
    ),
    # Resume and gates.
    Fault(
        "the metric log is not cut back on resume",
        "tracking/log.py",
        "log = Jsonl(path, size=kept)",
        "log = Jsonl(path)",
        ("tracking/test_tracking.py::test_resume_cuts_the_log_back_to_the_checkpoint",),
    ),
    Fault(
        "MLflow: a scoring run names no model",
        "tracking/mirror.py",
        'if stage.startswith("score_") and',
        'if stage.startswith("scored_") and',
        ("tracking/test_tracking.py::test_columns_of_dataset_source_and_model_are_filled",),
    ),
    Fault(
        "sams run: the curve is read next to the results, where it comes at the end",
        "launch/run.py",
        'self.checkpoints.glob(f"*/{name}")',
        "self.checkpoints.glob(name)",
        ("launch/test_run.py::test_the_view_shows_what_a_running_job_writes",),
    ),
    Fault(
        "a resumed run begins the epoch anew",
        "training/loop.py",
        "following = batches.after(done)\n",
        "following = batches.after(0)\n",
        (RESUMED,),
    ),
    Fault(
        "a resumed run has lost the scheduler's state",
        "training/checkpoints.py",
        'selector.load_state_dict(loop.pop("selector"))',
        'loop.pop("selector")',
        (RESUMED,),
    ),
    Fault(
        "a resumed run has lost AdamW's moments",
        "training/checkpoints.py",
        'log.info("resuming after step %d", loop["step"])',
        "_ = optimiser and optimiser.state.clear()",
        (RESUMED,),
    ),
    Fault(
        "rounding of bfloat16 is allowed per token, however many there are",
        "training/gates.py",
        " / math.sqrt(tokens)",
        "",
        (f"{OPTIONS}the_gate_bounds_the_mean_and_each_pair[bfloat16]",),
    ),
    Fault(
        "the gate of step 1 is asked after a resume too",
        "training/loop.py",
        'if gate is not None and state["step"] == 0:',
        "if gate is not None:",
        (RESUMED,),
    ),
    Fault(
        "an asynchronous checkpoint is written from the state in use",
        "training/checkpoints.py",
        'lambda tensor: tensor.detach().to("cpu", copy=True)',
        "lambda tensor: tensor.detach()",
        (f"{CHECKPOINTS}a_checkpoint_holds_the_state_of_its_step_though_training_continues",),
    ),
    Fault(
        "an error of the thread that writes a checkpoint is lost",
        "training/checkpoints.py",
        "            self._error = error\n",
        "            log.warning(error)\n",
        (f"{CHECKPOINTS}an_error_of_the_thread_is_raised_by_the_next_save_and_leaves_the_older_checkpoint",),
    ),
    Fault(
        "a checkpoint that fails on one process counts on the others",
        "training/checkpoints.py",
        "            if problem:\n",
        "            if False:\n",
        (f"{CHECKPOINTS}processes_save_while_they_train_and_all_raise_the_error_of_one",),
    ),
    Fault(
        "gradients wait for the last micro-batch although every one exchanges them",
        "training/distribution.py",
        "policy.set_requires_gradient_sync(last or each)",
        "policy.set_requires_gradient_sync(last)",
        (f"{SHARDING}gradients_exchanged_in_every_micro_batch_are_those_exchanged_in_the_last[2-1-float32]",),
    ),
    Fault(
        "all is recomputed before less is tried",
        "training/tuning.py",
        '"auto": ("none", "selective", "full"),',
        '"auto": ("none", "full", "selective"),',
        (f"{TUNING}memory_decides_what_is_recomputed_and_how_large_a_micro_batch_is",),
    ),
    Fault(
        "the activations of the block that is computed again are left out",
        "training/tuning.py",
        "per_token = kept + max(0.0, per_token - kept) / count",
        "per_token = kept",
        (f"{TUNING}memory_decides_what_is_recomputed_and_how_large_a_micro_batch_is",),
    ),
    Fault(
        "gradients that wait are left out when a micro-batch is sized",
        "training/memory.py",
        "return 0 if each else WAITING_BYTES * trained_weights(policy)",
        "return 0",
        (f"{TUNING}gradients_that_wait_unsharded_under_fsdp2_are_counted",),
    ),
    Fault(
        "a short job on a GPU compiles",
        "training/tuning.py",
        "and passes >= COMPILED_FROM",
        "and passes >= 0",
        (f"{TUNING}auto_compiles_long_jobs_on_gpus[auto-cuda-299-False]",),
    ),
    Fault(
        "a larger micro-batch is taken that is no faster",
        "training/tuning.py",
        "if GOOD_ENOUGH * seconds > least:",
        "if seconds > least:",
        (f"{TUNING}the_smallest_size_that_is_as_fast_is_chosen_and_no_larger_than_the_next_is_tried",),
    ),
    Fault(
        "the second name of a frozen tied weight stays in checkpoints of adapters",
        "training/checkpoints.py",
        "policy.named_parameters(remove_duplicate=False)",
        "policy.named_parameters()",
        ("training/test_checkpoints.py::test_a_checkpoint_of_adapters_holds_no_frozen_weight[True]",),
    ),
    Fault(
        "a torn checkpoint is resumed",
        "training/checkpoints.py",
        'int(marker.parent.name.split("-")[1]) for marker in run.glob(f"step-*/{COMPLETE}")',
        'int(marker.name.split("-")[1]) for marker in run.glob("step-*")',
        (f"{RUNS}a_torn_checkpoint_is_ignored_and_old_ones_are_pruned",),
    ),
    Fault(
        "a loss that is not finite is trained on",
        "training/gates.py",
        "    if wrong:\n",
        "    if wrong and not items:\n",
        (f"{RUNS}a_loss_that_is_not_finite_stops_all_and_names_the_pair",),
    ),
    # The judge.
    Fault(
        "a judge's log-probability above 0 is taken",
        "judge/calls.py",
        "value < 1e-3 for value",
        "value == value for value",
        (f"{BAD_ENDPOINTS}every_answer_is_bad",),
    ),
    Fault(
        "one prompt that is refused ends all",
        "judge/upstream.py",
        "if self._without > max(FEW_WITHOUT, self.good):",
        "if self._without > 0:",
        (f"{BAD_ENDPOINTS}one_prompt_has_a_fault",),
    ),
    Fault(
        "refused prompts end all though others were judged before",
        "judge/upstream.py",
        "if self._without > max(FEW_WITHOUT, self.good):",
        "if self._without > FEW_WITHOUT:",
        (f"{BAD_ENDPOINTS}many_prompts_are_refused_after_others_were_judged",),
    ),
    Fault(
        "three prompts that fail every time are an endpoint that is down",
        "judge/upstream.py",
        "and not await self._answers_at_all(request):",
        "and request:",
        (f"{BAD_ENDPOINTS}prompts_that_make_the_endpoint_fail_are_missing",),
    ),
    Fault(
        "answers of two models are mixed until the end",
        "judge/ask.py",
        "            self.models[self.model(answer)] += 1\n            try:",
        "            try:",
        (f"{BAD_ENDPOINTS}a_mixture_of_models_ends_at_its_first_answer",),
    ),
    Fault(
        "a judgment is requested at once by two processes",
        "judge/store.py",
        "while not self._lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, position) and not stopped():",
        "while False:",
        ("judge/test_ask.py::test_two_scorings_share_a_store",),
    ),
    Fault(
        "a process does not read what others have stored",
        "judge/store.py",
        "            self.refresh()\n            yield\n",
        "            yield\n",
        ("judge/test_ask.py::test_two_scorings_share_a_store",),
    ),
    Fault(
        "a request to stop loses the answers in flight",
        "judge/ask.py",
        ", stop_later(asked.interrupt):",
        ":",
        (f"{BAD_ENDPOINTS}a_request_to_stop_keeps_the_answers_in_flight",),
    ),
    Fault(
        "a compressed answer is unpacked",
        "judge/client.py",
        'if response.headers.get("content-encoding", "identity") != "identity":',
        "if False:",
        (f"{BAD_ENDPOINTS}every_answer_is_bad",),
    ),
    Fault(
        "a placeholder for a key is cut out of answers",
        "judge/upstream.py",
        "            if self._key and len(self._key) >= SHORTEST_SECRET:\n",
        "            if self._key:\n",
        (f"{BAD_ENDPOINTS}a_placeholder_is_no_secret",),
    ),
    # Tables, verify, compare.
    Fault(
        "a retired judge is found by its name at any endpoint",
        "judge/known.py",
        "urlsplit(judge.base_url).hostname != known().host",
        "not urlsplit(judge.base_url).hostname",
        ("judge/test_known.py::test_dates_are_of_one_endpoint",),
    ),
    Fault(
        "a judge answers on the day of its end",
        "judge/known.py",
        "if left <= 0 else",
        "if left < 0 else",
        ("judge/test_known.py::test_warnings_by_day",),
    ),
    Fault(
        "table: a local judge's score stands beside the paper's",
        "tables/paper_table.py",
        "if name not in accepted)",
        "if name not in accepted and name not in ('local', 'the local judge', 'llama-judge'))",
        (PAPER,),
    ),
    Fault(
        "table: a model from scratch stands beside the paper's",
        "tables/paper_table.py",
        "if study.model.path is None:",
        "if study.model.path is None and study.model.architecture is None:",
        (PAPER,),
    ),
    Fault(
        "table: the difference is turned round",
        "tables/paper_table.py",
        "value - shown.value",
        "shown.value - value",
        (PAPER,),
    ),
    Fault(
        "table: a column of the paper is read as its neighbour",
        "study/reported.py",
        'zip(content["columns"], values, strict=True)',
        'zip(content["columns"], values[1:] + values[:1], strict=True)',
        (PAPER,),
    ),
    Fault(
        "verify: an added file is let pass",
        "tables/verify.py",
        "extra = sorted(present_names - expected.keys())",
        "extra: list[str] = []",
        (VERIFY,),
    ),
    Fault(
        "verify: what a result was made from is not looked at",
        "tables/verify.py",
        "elif manifest_digest(source) != digest:",
        "elif not digest:",
        (VERIFY,),
    ),
    Fault(
        "verify: an edited checkout is let pass",
        "tables/verify.py",
        'get("git_dirty") == "true"',
        'get("git_dirty") == "yes"',
        (VERIFY,),
    ),
    Fault(
        "verify: a bundle depends on when its files were written",
        "tables/bundle.py",
        "entry = zipfile.ZipInfo(name)  # 1980-01-01",
        "entry = zipfile.ZipInfo.from_file(contents.get(name, part), name)",
        (VERIFY,),
    ),
    Fault(
        "comparisons: the bootstrap interval is one of 90 %",
        "tables/comparisons.py",
        "[2.5, 97.5]",
        "[5, 95]",
        ("tables/test_comparisons.py",),
    ),
    Fault(
        "judge agreement resamples pairs in place of instructions",
        "scoring/agreement_figures.py",
        "    items = np.unique(np.concatenate([pairs.item, draws.item]))\n"
        "    of_pairs, of_draws = np.searchsorted(items, pairs.item), np.searchsorted(items, draws.item)",
        "    items = np.arange(len(pairs) + len(draws.item))\n"
        "    of_pairs, of_draws = items[: len(pairs)], items[len(pairs) :]",
        ("scoring/test_agreement_figures.py",),
    ),
    Fault(
        "judge agreement takes the mean of both orders in place of the order of a scoring",
        "scoring/agreement.py",
        "orders[of_pair[0].switched] if log_probs else sum(orders) / 2",
        "sum(orders) / 2",
        ("scoring/test_agreement.py",),
    ),
    Fault(
        "the note on a judge's agreement takes any judge's file",
        "tables/agreement_note.py",
        "if others or asked != settings.asked_with:",
        "if asked != settings.asked_with:",
        ("tables/test_judge_agreement.py",),
    ),
    Fault(
        "the length coefficient has no intercept for each model",
        "scoring/agreement_figures.py",
        "design = np.column_stack([pairs.log_length, model[:, None] == np.arange(len(models))])",
        "design = np.column_stack([pairs.log_length, np.ones(len(model))])",
        ("scoring/test_agreement_figures.py",),
    ),
    Fault(
        "own prompts: a prompt with another winner in each order is a win, too",
        "scoring/own_prompts.py",
        "zip(judged, opposed, strict=True) if not differs]",
        "zip(judged, opposed, strict=True)]",
        ("scoring/test_own_prompts.py::test_repeated_verdicts_count_each_prompt_once",),
    ),
    Fault(
        "a recorded judge is completed by another of a longer name",
        "scoring/alpaca_eval.py",
        "is_snapshot(recorded_by or requested, requested)",
        "(recorded_by or requested).startswith(requested)",
        ("scoring/test_alpaca_eval.py::test_a_recorded_judge_is_completed_by_the_same_judge_only",),
    ),
    Fault(
        "code: a caption of a benchmark runs its scoring again",
        "study/code.py",
        'entry = f"{module}:main" if',
        "entry = module if",
        ("runtime/test_code.py::test_answers_depend_on_a_benchmarks_questions_and_scores_on_its_judge",),
    ),
    Fault(
        "inputs: half a surrogate pair is read",
        "data/sources.py",
        "if _SURROGATE.search(text):",
        "if False:",
        ("bad_input/test_commands.py::test_benchmark_inputs",),
    ),
    Fault(
        "inputs: a judge prompt without the answer is taken",
        "scoring/mt_bench_inputs.py",
        "for name, reason in try_prompts(prompts):",
        "for name, reason in ():",
        ("bad_input/test_commands.py::test_benchmark_inputs",),
    ),
    Fault(
        "preflight: the files of benchmarks are not read",
        "launch/preflight.py",
        "    check_questions(settings)\n",
        "",
        ("launch/test_preflight.py::test_files_of_benchmarks_are_read_by_their_scorers",),
    ),
    Fault(
        "comparisons: a judgment without a rating counts",
        "scoring/mt_bench.py",
        'if row["score"] != FAILED:',
        "if True:",
        ("tables/test_comparisons.py",),
    ),
    Fault(
        "mt_bench: a rating of any size counts",
        "scoring/mt_bench.py",
        "if not LOWEST <= rating <= HIGHEST:",
        "if False:",
        ("scoring/test_mt_bench.py",),
    ),
    Fault(
        "mt_bench: several ratings are no doubt",
        "scoring/mt_bench.py",
        "if len(ratings) > 1:",
        "if False:",
        ("scoring/test_mt_bench.py",),
    ),
    Fault(
        "judge: thoughts are read where their first mark is in the prompt",
        "judge/calls.py",
        "|((?!<think>).)*?</think>)",
        ")",
        ("scoring/test_mt_bench.py",),
    ),
    Fault(
        "judge's noise: of one judgment, not of the mean of k",
        "judge/noise.py",
        "statistics.variance(of) / len(of)",
        "statistics.variance(of)",
        ("judge/test_noise.py",),
    ),
    Fault(
        "own prompts: one order counts twice",
        "scoring/own_prompts.py",
        '(self.theirs, self.ours, "B")',
        '(self.ours, self.theirs, "A")',
        ("scoring/test_own_prompts.py",),
    ),
    Fault(
        "own prompts: the first verdict counts",
        "scoring/own_prompts.py",
        'TIE if found[-1] == "C" else WIN if found[-1] == label',
        'TIE if found[0] == "C" else WIN if found[0] == label',
        ("scoring/test_own_prompts.py",),
    ),
    Fault(
        "own prompts: the interval is Wald's",
        "scoring/own_prompts.py",
        "added = [*values, WIN, WIN, LOSS, LOSS]",
        "added = [*values]",
        ("scoring/test_own_prompts.py",),
    ),
    Fault(
        "side by side: a missing judgment ends the page",
        "tables/side_by_side.py",
        "if not all(key in of for of in scores):  # a judgment is missing",
        "if False:",
        ("tables/test_side_by_side.py",),
    ),
    Fault(
        "compare: the sign-flip test is one-sided",
        "tables/repeats.py",
        "np.abs(sums) >=",
        "sums >=",
        ("tables/test_repeats.py",),
    ),
    Fault(
        "compare: the interval over seeds is a normal one",
        "tables/repeats.py",
        "float(t.ppf(0.975, count - 1))",
        "1.96",
        ("tables/test_repeats.py", "tables/test_comparisons.py"),
    ),
    Fault(
        "tables in a terminal: columns of numbers are narrowed",
        "runtime/terminal.py",
        "wide if wide <= LONG else LEAST for wide",
        "min(wide, LEAST // 2) for wide",
        ("runtime/test_terminal.py", "tables/test_printed.py"),
    ),
    Fault(
        "tables in a terminal: no second part",
        "runtime/terminal.py",
        "if len(parts[-1]) > names and",
        "if False and",
        ("runtime/test_terminal.py", "tables/test_printed.py"),
    ),
    Fault(
        "figures: noise without flipped labels",
        "tables/figures.py",
        "bool(own) and flipped",
        "bool(own)",
        ("tables/test_figures.py",),
    ),
    Fault(
        "main table: the number of seeds is never shown",
        "tables/render.py",
        '(table["n_seeds"] != seeds).any()',
        "False",
        ("tables/test_main_table.py",),
    ),
    Fault(
        "compare: scores of different judges are compared",
        "tables/compare.py",
        'return "" if judges[0] == judges[1] else',
        'return "" if judges else',
        ("tables/test_compare.py",),
    ),
    Fault(
        "figure: flipped pairs kept are not compared with chance",
        "tables/figures.py",
        "(relative - 1)",
        "relative",
        ("tables/test_figures.py::test_selection_shows_flips_margins_and_what_the_scheduler_knew",),
    ),
    Fault(
        "figures of steps that are not logged are computed",
        "training/loop.py",
        "        if logged:\n            measures.take(step, items)",
        "        measures.take(step, items)\n        if logged:",
        ("training/test_syncs.py::test_scalars_that_a_step_without_a_log_line_reads",),
    ),
    Fault(
        "the cost log forgets the steps between two lines",
        "runtime/costs.py",
        "waiting, self.waiting = self.waiting, []",
        "waiting, self.waiting = self.waiting[-1:], []",
        ("runtime/test_costs.py::test_steps_between_two_lines_count_in_the_medians",),
    ),
    Fault(
        "the main table hides that rows were padded",
        "tables/captions.py",
        'tuning.get("fallbacks", [])',
        'tuning.get("fallback", [])',
        ("tables/test_captions.py::test_fallbacks_of_training_jobs_are_below_the_main_table",),
    ),
    Fault(
        "a scheduler that no method starts from refuses its batch",
        "study/study.py",
        'if self.pretrains and self.pretrain is not None and self.pretrain.policy == "frozen":',
        'if self.pretrain is not None and self.pretrain.policy == "frozen":',
        ("study/test_config.py::test_settings_that_no_job_reads_refuse_nothing",),
    ),
    Fault(
        "a failed job's log is not shown on Snakemake's terminal",
        "launch/brief.py",
        "if len(self.view.failed) > failed:",
        "if len(self.view.failed) < failed:",
        (
            "launch/test_run.py::test_snakemakes_terminal_has_a_line_for_each_job_and_the_end_of_a_failed_ones_log",
        ),
    ),
    Fault(
        "an installed package takes the commit of the user's repository for its own",
        "runtime/provenance.py",
        'if not (SOURCE / ".git").exists():',
        "if not SOURCE.exists():",
        ("runtime/test_source.py::test_an_installed_package_has_no_commit_of_the_users_repository",),
    ),
    Fault(
        "a file of the package comes before the user's own",
        "runtime/source.py",
        "packaged.is_file() and not Path(name).is_file()",
        "packaged.is_file()",
        ("runtime/test_source.py::test_files_of_the_current_folder_come_before_those_of_the_package",),
    ),
]


class Failures:
    """A plugin of pytest's that notes what fails."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.names.append(report.nodeid)


def failing(copy: Path, tests: Sequence[str]) -> list[str]:
    """Run tests on the copy, in a process of their own; return the names of those that fail."""
    result = copy.parent / "result.json"
    result.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            run_tests(copy, tests, result)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(0)
    deadline = time.monotonic() + SECONDS
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return [f"no end within {SECONDS} s"]
        time.sleep(0.05)
    if not result.is_file():
        raise SystemExit(f"the tests did not run:\n{log_of(copy)}")
    found: list[str] = json.loads(result.read_text())
    return found


def run_tests(copy: Path, tests: Sequence[str], result: Path) -> None:
    """In a forked process: run tests of the copy on the package of the copy."""
    os.setsid()
    log = os.open(copy.parent / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(copy)
    sys.dont_write_bytecode = True  # two versions of a file within a second would share it
    os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.path[0] = str(copy)
    for name in [name for name in sys.modules if name.split(".")[0] in ("sams", "tests")]:
        del sys.modules[name]
    package = importlib.import_module("sams")
    assert package.__file__ and Path(package.__file__).is_relative_to(copy), (
        "the tests would not see the fault"
    )
    import pytest

    failures = Failures()
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short"]
    status = pytest.main([*options, *(f"tests/{test}" for test in tests)], plugins=[failures])
    if status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        result.write_text(json.dumps(failures.names))


def log_of(copy: Path) -> str:
    """The end of what the last run of tests printed."""
    return (copy.parent / LOG).read_text(errors="replace")[-4000:]


def short(names: Sequence[str]) -> list[str]:
    """Test names without their folder and their parameters, each once."""
    return list(dict.fromkeys(name.removeprefix("tests/").split("[")[0].split("/")[-1] for name in names))


def main(words: Sequence[str]) -> int:
    """Try the faults whose names contain one of the words, or all; return the exit status."""
    faults = [fault for fault in FAULTS if not words or any(word in fault.name for word in words)]
    for fault in faults:
        if (times := (ROOT / "sams" / fault.file).read_text().count(fault.old)) != 1:
            print(f"stale row: `{fault.name}` finds its text {times} times in sams/{fault.file}")
            return 1
    for module in HEAVY:
        importlib.import_module(module)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder).resolve() / "copy"
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(ROOT / name, copy / name)
        if failed := failing(copy, list(dict.fromkeys(test for fault in faults for test in fault.tests))):
            print(log_of(copy), "without any fault these tests fail:", *failed, sep="\n")
            return 1
        survived = 0
        print("| fault | in | failing tests |\n|---|---|---|")
        for fault in faults:
            file = copy / "sams" / fault.file
            whole = file.read_text()
            file.write_text(whole.replace(fault.old, fault.new))
            failed = short(failing(copy, fault.tests))
            file.write_text(whole)
            survived += not failed
            told = ", ".join(f"`{name}`" for name in failed) or "**none**"
            print(f"| {fault.name} | `{fault.file}` | {told} |", flush=True)
    print(f"\n{len(faults)} faults, {survived} not noticed", file=sys.stderr)
    return int(survived > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
