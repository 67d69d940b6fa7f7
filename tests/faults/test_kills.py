"""The whole workflow, killed by SIGKILL in every rule, and its torchrun, a rank and the judge too.

The same command follows each kill. At the end the files are bitwise those of a run that nobody disturbed.
"""

import json
import random
import time
from pathlib import Path

import psutil
import pytest

from sams.tables.verify import verify
from tests.faults.study import STUDY, Workflow, all_gone, final_files, overlay

pytestmark = pytest.mark.faults

RULES = (
    "preflight prepare_data prepare_questions tokenise train_sft export_model compute_reference "
    "pretrain_scheduler train_preference generate_alpaca_eval generate_mt_bench make_difficulty "
    "score_alpaca_eval score_mt_bench main_table"
).split()
# Killed in addition, before the workflow is: the words tell it from the other processes of the workflow.
PARTS = {
    "compute_reference": ("torchrun", "sams.launch.torchrun"),
    "train_preference": ("a rank", "sams.training.preference"),
    "score_alpaca_eval": ("the judge", "sams.world.local_judge"),
    "score_mt_bench": ("the judge", "sams.world.local_judge"),
}
SECONDS = 3600


def victim(run: Workflow, words: str) -> psutil.Process | None:
    """A process of the workflow, found by a word of its command line; not the shell that started it."""
    for process in run.members():
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if "python" in command[0] and words in command and "torch.distributed.run" not in command:
            if words.startswith("sams.training") and "sams.launch.torchrun" in command:
                continue
            return process
    return None


def test_a_workflow_killed_in_every_rule_ends_bitwise_where_an_undisturbed_one_ends(
    undisturbed: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    theirs, took = undisturbed
    chance = random.Random(0)
    arguments = ("--configfile", overlay(tmp_path))
    whole, parts = set(RULES), dict(PARTS)
    told: list[str] = []
    deadline = time.monotonic() + SECONDS

    while True:
        run = Workflow(tmp_path, *arguments)
        seen = 0
        try:
            while run.process.poll() is None:
                assert time.monotonic() < deadline, told
                begun = run.begun()
                if len(begun) == seen:
                    time.sleep(0.05)
                    continue
                rule = begun[seen]
                seen += 1
                delay = chance.random() * took[rule]
                if rule in parts and kill_part(run, parts[rule][1], took[rule], chance):
                    told.append(f"{parts.pop(rule)[0]}, {rule}")
                elif rule in whole:
                    time.sleep(delay)
                    group = len(whole) % 2 == 0
                    run.kill(group=group)
                    whole.remove(rule)
                    told.append(f"workflow{' and its group' if group else ''}, {rule}, after {delay:.1f} s")
            assert not all_gone(run), "a process outlives its workflow"
            if run.process.returncode == 0:
                break
        finally:
            run.clear()

    print("\n".join(told))
    assert {"torchrun", "a rank", "the judge"} <= {line.partition(",")[0] for line in told}
    assert not whole, f"never killed in {sorted(whole)}"
    ours, wanted = final_files(tmp_path / "results"), final_files(theirs / "results")
    assert sorted(ours) == sorted(wanted)
    assert [name for name in wanted if ours[name] != wanted[name]] == []
    findings = verify(tmp_path / "results" / str(STUDY["study"]), None)
    assert not [found for found in findings if not found.holds and found.check != "commit"]
    (tmp_path / "kills.json").write_text(json.dumps(told))


def kill_part(run: Workflow, words: str, took: float, chance: random.Random) -> bool:
    """SIGKILL to a part of the running job, at a random moment; whether it was found."""
    deadline = time.monotonic() + 4 * took + 30
    while time.monotonic() < deadline and run.process.poll() is None:
        found = victim(run, words)
        if found is not None:
            time.sleep(chance.random() * took / 6)
            try:
                found.kill()
            except psutil.NoSuchProcess:
                return False
            return True
        time.sleep(0.05)
    return False
