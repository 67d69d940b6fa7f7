# Needs: token ids (data.smk), reference log-probs (reference.smk).
# Makes: trained policies, the pretrained scheduler, exported models.
#
# Checkpoints are not outputs: Snakemake deletes a failed job's outputs, and a killed run must resume.


rule train_sft:
    input:
        tokens=TOKENS,
    output:
        trained=f"{RESULTS}/sft/seed{{seed}}/trained/manifest.json",
        metrics=f"{RESULTS}/sft/seed{{seed}}/train_metrics.json",
        curve=f"{RESULTS}/sft/seed{{seed}}/train.jsonl",
    log:
        f"{LOGS}/train_sft/seed{{seed}}.log",
    benchmark:
        f"{COSTS}/train_sft/seed{{seed}}.tsv"
    conda:
        "../envs/sams.yaml"
    threads: PROCESSES * STUDY.launch.threads_per_process
    resources:
        gpu=GPUS,
        processes=PROCESSES,
    params:
        recipe=recipe("train_sft"),
        code=code_digest("sams.training.sft"),
        tokens=subpath(input.tokens, parent=True),
        out=subpath(output.metrics, parent=True),
        checkpoints=f"{CHECKPOINTS}/sft/seed{{seed}}",
    shell:
        "python -m torch.distributed.run --standalone --nproc-per-node {resources.processes}"
        " -m sams.training.sft"
        " --recipe {params.recipe:q}"
        " --tokens {params.tokens:q}"
        " --out {params.out:q}"
        " --checkpoints {params.checkpoints:q}"
        " > {log:q} 2>&1"


rule pretrain_scheduler:
    input:
        tokens=TOKENS,
        model=f"{RESULTS}/sft/seed{{seed}}/model/manifest.json",
    output:
        weights=f"{RESULTS}/scheduler/seed{{seed}}/weights/manifest.json",
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
        gpu=GPUS,
        processes=PROCESSES,
    params:
        recipe=recipe("pretrain_scheduler"),
        code=code_digest("sams.training.pretrain_scheduler"),
        tokens=subpath(input.tokens, parent=True),
        model=subpath(input.model, parent=True),
        out=subpath(output.metrics, parent=True),
        checkpoints=f"{CHECKPOINTS}/scheduler/seed{{seed}}",
    shell:
        "python -m torch.distributed.run --standalone --nproc-per-node {resources.processes}"
        " -m sams.training.pretrain_scheduler"
        " --recipe {params.recipe:q}"
        " --tokens {params.tokens:q}"
        " --model {params.model:q}"
        " --out {params.out:q}"
        " --checkpoints {params.checkpoints:q}"
        " > {log:q} 2>&1"


rule train_preference:
    input:
        tokens=TOKENS,
        model=f"{RESULTS}/sft/seed{{seed}}/model/manifest.json",
        reference=f"{RESULTS}/reference/seed{{seed}}/manifest.json",
        scheduler=pretrained_scheduler,
    output:
        trained=f"{RESULTS}/{{method}}/seed{{seed}}/trained/manifest.json",
        metrics=f"{RESULTS}/{{method}}/seed{{seed}}/train_metrics.json",
        curve=f"{RESULTS}/{{method}}/seed{{seed}}/train.jsonl",
    log:
        f"{LOGS}/train_preference/{{method}}-seed{{seed}}.log",
    benchmark:
        f"{COSTS}/train_preference/{{method}}-seed{{seed}}.tsv"
    wildcard_constraints:
        method="|".join(STUDY.preference_methods) or "none",
    conda:
        "../envs/sams.yaml"
    threads: PROCESSES * STUDY.launch.threads_per_process
    resources:
        gpu=GPUS,
        processes=PROCESSES,
    params:
        recipe=recipe("train_preference"),
        code=code_digest("sams.training.preference"),
        tokens=subpath(input.tokens, parent=True),
        model=subpath(input.model, parent=True),
        reference=subpath(input.reference, parent=True),
        scheduler=scheduler_option,
        out=subpath(output.metrics, parent=True),
        checkpoints=f"{CHECKPOINTS}/{{method}}/seed{{seed}}",
    shell:
        "python -m torch.distributed.run --standalone --nproc-per-node {resources.processes}"
        " -m sams.training.preference"
        " --recipe {params.recipe:q}"
        " --tokens {params.tokens:q}"
        " --model {params.model:q}"
        " --reference {params.reference:q}"
        " {params.scheduler}"
        " --out {params.out:q}"
        " --checkpoints {params.checkpoints:q}"
        " > {log:q} 2>&1"


# Turns sharded weights, or the model that a study without SFT starts from, into a Hugging Face folder.
rule export_model:
    input:
        tokens=TOKENS,
        trained=trained_weights,
    output:
        manifest=f"{RESULTS}/{{method}}/seed{{seed}}/model/manifest.json",
    log:
        f"{LOGS}/export_model/{{method}}-seed{{seed}}.log",
    conda:
        "../envs/sams.yaml"
    params:
        recipe=recipe("export_model"),
        code=code_digest("sams.training.export"),
        tokens=subpath(input.tokens, parent=True),
        trained=trained_option,
        out=subpath(output.manifest, parent=True),
    shell:
        "python -m sams.training.export"
        " --recipe {params.recipe:q}"
        " --tokens {params.tokens:q}"
        " {params.trained}"
        " --out {params.out:q}"
        " > {log:q} 2>&1"
