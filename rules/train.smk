# Needs: token ids (data.smk), reference log-probs (reference.smk).
# Makes: trained policies, the pretrained scheduler, exported models.
#
# Checkpoints are not outputs: Snakemake deletes a failed job's outputs, and a killed run must resume.


# With `pretrain.policy: moving` the scheduler learns beside the policy, in the same job.
rule train_sft:
    input:
        tokens=TOKENS,
        start=start_files,
    output:
        trained=f"{RESULTS}/sft/seed{{seed}}/trained/manifest.json",
        metrics=f"{RESULTS}/sft/seed{{seed}}/train_metrics.json",
        curve=f"{RESULTS}/sft/seed{{seed}}/train.jsonl",
        scheduler=[SCHEDULER] if PRETRAINING == "moving" else [],
    log:
        f"{LOGS}/train_sft/seed{{seed}}.log",
    benchmark:
        f"{COSTS}/train_sft/seed{{seed}}.tsv"
    conda:
        "../envs/sams.yaml"
    threads: PROCESSES * STUDY.launch.threads_per_process
    resources:
        **TRAINING,
    params:
        recipe=recipe("train_sft"),
        code=code_digest("sams.training.sft"),
        tokens=subpath(input.tokens, parent=True),
        scheduler=scheduler_made,
        out=subpath(output.metrics, parent=True),
        checkpoints=f"{CHECKPOINTS}/sft/seed{{seed}}",
    shell:
        "exec python -m sams.launch.nodes --nodes {resources.nodes} --processes {resources.processes} --cpus {threads}"
        " -m sams.training.sft"
        " --recipe {params.recipe:q}"
        " --tokens {params.tokens:q}"
        " {params.scheduler}"
        " --out {params.out:q}"
        " --checkpoints {params.checkpoints:q}"
        " > {log:q} 2>&1"


if PRETRAINING == "frozen":

    rule pretrain_scheduler:
        input:
            tokens=TOKENS,
            model=f"{RESULTS}/sft/seed{{seed}}/model/manifest.json",
        output:
            weights=SCHEDULER,
            metrics=f"{RESULTS}/scheduler/seed{{seed}}/train_metrics.json",
            curve=f"{RESULTS}/scheduler/seed{{seed}}/train.jsonl",
        log:
            f"{LOGS}/pretrain_scheduler/seed{{seed}}.log",
        benchmark:
            f"{COSTS}/pretrain_scheduler/seed{{seed}}.tsv"
        conda:
            "../envs/sams.yaml"
        threads: PROCESSES * STUDY.launch.threads_per_process
        resources:
            **TRAINING,
        params:
            recipe=recipe("pretrain_scheduler"),
            code=code_digest("sams.training.pretrain_scheduler"),
            tokens=subpath(input.tokens, parent=True),
            model=subpath(input.model, parent=True),
            out=subpath(output.metrics, parent=True),
            checkpoints=f"{CHECKPOINTS}/scheduler/seed{{seed}}",
        shell:
            "exec python -m sams.launch.nodes --nodes {resources.nodes} --processes {resources.processes} --cpus {threads}"
            " -m sams.training.pretrain_scheduler"
            " --recipe {params.recipe:q}"
            " --tokens {params.tokens:q}"
            " --model {params.model:q}"
            " --out {params.out:q}"
            " --checkpoints {params.checkpoints:q}"
            " > {log:q} 2>&1"


# For selector `selective`: the losses of one half of the pairs under a model that was trained on the other.
rule train_crossfit:
    input:
        tokens=TOKENS,
        model=f"{RESULTS}/sft/seed{{seed}}/model/manifest.json",
        reference=reference_logps,
    output:
        losses=f"{RESULTS}/{{method}}/seed{{seed}}/crossfit/half{{half}}/losses/manifest.json",
        metrics=f"{RESULTS}/{{method}}/seed{{seed}}/crossfit/half{{half}}/train_metrics.json",
        curve=f"{RESULTS}/{{method}}/seed{{seed}}/crossfit/half{{half}}/train.jsonl",
    log:
        f"{LOGS}/train_crossfit/{{method}}-seed{{seed}}-half{{half}}.log",
    benchmark:
        f"{COSTS}/train_crossfit/{{method}}-seed{{seed}}-half{{half}}.tsv"
    wildcard_constraints:
        method="|".join(map(re.escape, STUDY.selective_methods)) or "none",
        half="0|1",
    conda:
        "../envs/sams.yaml"
    threads: PROCESSES * STUDY.launch.threads_per_process
    resources:
        **TRAINING,
    params:
        recipe=recipe("train_crossfit"),
        code=code_digest("sams.training.crossfit"),
        tokens=subpath(input.tokens, parent=True),
        model=subpath(input.model, parent=True),
        reference=reference_option,
        out=subpath(output.metrics, parent=True),
        checkpoints=f"{CHECKPOINTS}/{{method}}/seed{{seed}}-half{{half}}",
    shell:
        "exec python -m sams.launch.nodes --nodes {resources.nodes} --processes {resources.processes} --cpus {threads}"
        " -m sams.training.crossfit"
        " --recipe {params.recipe:q}"
        " --half {wildcards.half}"
        " --tokens {params.tokens:q}"
        " --model {params.model:q}"
        " {params.reference}"
        " --out {params.out:q}"
        " --checkpoints {params.checkpoints:q}"
        " > {log:q} 2>&1"


rule train_preference:
    input:
        tokens=TOKENS,
        model=f"{RESULTS}/sft/seed{{seed}}/model/manifest.json",
        reference=reference_logps,
        scheduler=pretrained_scheduler,
        crossfit=crossfit_losses,
    output:
        trained=f"{RESULTS}/{{method}}/seed{{seed}}/trained/manifest.json",
        metrics=f"{RESULTS}/{{method}}/seed{{seed}}/train_metrics.json",
        curve=f"{RESULTS}/{{method}}/seed{{seed}}/train.jsonl",
    log:
        f"{LOGS}/train_preference/{{method}}-seed{{seed}}.log",
    benchmark:
        f"{COSTS}/train_preference/{{method}}-seed{{seed}}.tsv"
    wildcard_constraints:
        method="|".join(map(re.escape, STUDY.preference_methods)) or "none",
    conda:
        "../envs/sams.yaml"
    threads: PROCESSES * STUDY.launch.threads_per_process
    resources:
        **TRAINING,
    params:
        recipe=recipe("train_preference"),
        code=code_digest("sams.training.preference"),
        tokens=subpath(input.tokens, parent=True),
        model=subpath(input.model, parent=True),
        reference=reference_option,
        scheduler=scheduler_option,
        crossfit=crossfit_option,
        out=subpath(output.metrics, parent=True),
        checkpoints=f"{CHECKPOINTS}/{{method}}/seed{{seed}}",
    shell:
        "exec python -m sams.launch.nodes --nodes {resources.nodes} --processes {resources.processes} --cpus {threads}"
        " -m sams.training.preference"
        " --recipe {params.recipe:q}"
        " --tokens {params.tokens:q}"
        " --model {params.model:q}"
        " {params.reference}"
        " {params.scheduler}"
        " {params.crossfit}"
        " --out {params.out:q}"
        " --checkpoints {params.checkpoints:q}"
        " > {log:q} 2>&1"


# Turns sharded weights, the model that a study without SFT starts from, or a finished one into a Hugging Face folder.
rule export_model:
    input:
        preflight=ancient(f"results/{STUDY.study}/preflight.json"),
        tokens=tokens_of_export,
        trained=trained_weights,
        start=start_files,
    output:
        manifest=f"{RESULTS}/{{method}}/seed{{seed}}/model/manifest.json",
    log:
        f"{LOGS}/export_model/{{method}}-seed{{seed}}.log",
    conda:
        "../envs/sams.yaml"
    resources:
        **resources.exporting(STUDY),
    params:
        recipe=recipe("export_model"),
        code=code_digest("sams.training.export"),
        tokens=tokens_option,
        trained=trained_option,
        out=subpath(output.manifest, parent=True),
    shell:
        "python -m sams.training.export"
        " --recipe {params.recipe:q}"
        " {params.tokens}"
        " {params.trained}"
        " --out {params.out:q}"
        " > {log:q} 2>&1"
