# Needs: token ids (data.smk). Makes: trained policies, the pretrained scheduler, log-probs of the reference model,
# exported models.
#
# Checkpoints are not outputs: Snakemake deletes a failed job's outputs, and a killed run must resume.


# With `pretrain.policy: moving`, this job also trains the scheduler.
rule train_sft:
    input:
        tokens=TOKENS,
        sources=ancient(JOBS.sources("train_sft")),
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
    threads: TRAINING["processes"] * STUDY.launch.threads_per_process
    resources:
        **TRAINING,
    params:
        **JOBS.parameters("train_sft"),
        options=options(
            "tokens",
            **({"scheduler": SCHEDULER} if PRETRAINING == "moving" else {}),
            out=f"{RESULTS}/sft/seed{{seed}}",
            checkpoints=f"{CHECKPOINTS}/sft/seed{{seed}}",
        ),
    shell:
        DISTRIBUTED_STAGE


if PRETRAINING == "frozen":

    use rule train_sft as pretrain_scheduler with:
        input:
            tokens=TOKENS,
            model=START,
            sources=ancient(JOBS.sources("pretrain_scheduler")),
        output:
            weights=SCHEDULER,
            metrics=f"{RESULTS}/scheduler/seed{{seed}}/train_metrics.json",
            curve=f"{RESULTS}/scheduler/seed{{seed}}/train.jsonl",
        log:
            f"{LOGS}/pretrain_scheduler/seed{{seed}}.log",
        benchmark:
            f"{COSTS}/pretrain_scheduler/seed{{seed}}.tsv"
        params:
            **JOBS.parameters("pretrain_scheduler"),
            options=options(
                "tokens",
                "model",
                out=f"{RESULTS}/scheduler/seed{{seed}}",
                checkpoints=f"{CHECKPOINTS}/scheduler/seed{{seed}}",
            ),


# Log-probs of every pair under the reference model, by pair id.
use rule train_sft as compute_reference with:
    input:
        tokens=TOKENS,
        model=START,
    output:
        manifest=f"{RESULTS}/reference/seed{{seed}}/manifest.json",
    log:
        f"{LOGS}/compute_reference/seed{{seed}}.log",
    benchmark:
        f"{COSTS}/compute_reference/seed{{seed}}.tsv"
    params:
        **JOBS.parameters("compute_reference"),
        options=options("tokens", "model", out="{output.manifest}"),


# For selector `selective`: the losses of one half of the pairs under a model that was trained on the other.
use rule train_sft as train_crossfit with:
    input:
        tokens=TOKENS,
        model=START,
        reference=reference_logps,
        sources=ancient(JOBS.sources("train_crossfit")),
    output:
        losses=f"{RUN}/crossfit/half{{half}}/losses/manifest.json",
        metrics=f"{RUN}/crossfit/half{{half}}/train_metrics.json",
        curve=f"{RUN}/crossfit/half{{half}}/train.jsonl",
    log:
        f"{LOGS}/train_crossfit/{{method}}-seed{{seed}}-half{{half}}.log",
    benchmark:
        f"{COSTS}/train_crossfit/{{method}}-seed{{seed}}-half{{half}}.tsv"
    wildcard_constraints:
        method=one_of(STUDY.selective_methods),
    params:
        **JOBS.parameters("train_crossfit"),
        options=options(
            "tokens",
            "model",
            "reference",
            half="{half}",
            out=f"{RUN}/crossfit/half{{half}}",
            checkpoints=f"{CHECKPOINTS}/{{method}}/seed{{seed}}-half{{half}}",
        ),


use rule train_sft as train_preference with:
    input:
        tokens=TOKENS,
        model=START,
        reference=reference_logps,
        scheduler=pretrained_scheduler,
        crossfit=crossfit_losses,
        sources=ancient(JOBS.sources("train_preference")),
    output:
        trained=f"{RUN}/trained/manifest.json",
        metrics=f"{RUN}/train_metrics.json",
        curve=f"{RUN}/train.jsonl",
        pairs=f"{RUN}/pairs.parquet",
    log:
        f"{LOGS}/train_preference/{{method}}-seed{{seed}}.log",
    benchmark:
        f"{COSTS}/train_preference/{{method}}-seed{{seed}}.tsv"
    wildcard_constraints:
        method=one_of(STUDY.preference_methods),
    params:
        **JOBS.parameters("train_preference"),
        options=options(
            "tokens",
            "model",
            "reference",
            "scheduler",
            "crossfit",
            out=RUN,
            checkpoints=f"{CHECKPOINTS}/{{method}}/seed{{seed}}",
        ),


# Exports a Hugging Face folder of sharded weights, of a study's start model without SFT, or of a finished model.
rule export_model:
    input:
        preflight=ancient(PREFLIGHT),
        tokens=tokens_of_export,
        trained=trained_weights,
        model=base_of_adapters,
        sources=ancient(JOBS.sources("export_model")),
    output:
        manifest=f"{RUN}/model/manifest.json",
    log:
        f"{LOGS}/export_model/{{method}}-seed{{seed}}.log",
    conda:
        "../envs/sams.yaml"
    resources:
        **resources.exporting(STUDY),
    params:
        **JOBS.parameters("export_model"),
        options=options("tokens", "trained", "model", out="{output.manifest}"),
    shell:
        STAGE
