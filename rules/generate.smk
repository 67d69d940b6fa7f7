# Needs: exported models, the benchmarks' questions, test pairs. Makes: answers in the formats of AlpacaEval and
# FastChat, answers to test prompts, and preference pairs of a model's own answers.


# Finished batches are in .<answers>.parts next to the answers. That file is not an output: Snakemake deletes the
# outputs of a failed job, and the next start resumes from the file.
for benchmark in [benchmark for benchmark in BENCHMARKS if benchmark.answers]:

    rule:
        name:
            f"generate_{benchmark.name}"
        input:
            model=f"{RUN}/model/manifest.json",
            questions=DATA if benchmark.asks_test_prompts else questions_of(benchmark.name),
        output:
            answers=f"{RUN}/{benchmark.answers}",
        log:
            f"{LOGS}/generate_{benchmark.name}/{{method}}-seed{{seed}}.log",
        benchmark:
            f"{COSTS}/generate_{benchmark.name}/{{method}}-seed{{seed}}.tsv"
        conda:
            "../envs/sams.yaml"
        resources:
            **resources.generation(STUDY, GPUS_HERE),
        params:
            **JOBS.parameters("generate_answers", benchmark=benchmark.name),
            options=options("model", "questions", out="{output.answers}"),
        shell:
            STAGE


# Answers to the first test prompts, for the page that shows the start model and the methods side by side.
rule generate_samples:
    input:
        model=f"{RUN}/model/manifest.json",
        questions=DATA,
    output:
        answers=f"{RUN}/samples/answers.jsonl",
    log:
        f"{LOGS}/generate_samples/{{method}}-seed{{seed}}.log",
    benchmark:
        f"{COSTS}/generate_samples/{{method}}-seed{{seed}}.tsv"
    conda:
        "../envs/sams.yaml"
    resources:
        **resources.generation(STUDY, GPUS_HERE),
    params:
        **JOBS.parameters("generate_answers", benchmark="samples"),
        options=options("model", "questions", out="{output.answers}"),
    shell:
        STAGE


if STUDY.on_policy:

    # Pairs of the best and the worst of several answers to each prompt, by a reward model.
    use rule generate_samples as sample_pairs with:
        input:
            model=f"{RUN}/model/manifest.json",
            sources=ancient(JOBS.sources("sample_pairs")),
        output:
            pairs=f"{RUN}/on_policy/pairs.jsonl",
        log:
            f"{LOGS}/sample_pairs/{{method}}-seed{{seed}}.log",
        benchmark:
            f"{COSTS}/sample_pairs/{{method}}-seed{{seed}}.tsv"
        params:
            **JOBS.parameters("sample_pairs"),
            prompts=STUDY.on_policy.prompts,
            reward_model=STUDY.on_policy.reward_model,
            options=options(
                "model",
                prompts=literal(STUDY.on_policy.prompts),
                reward_model=literal(STUDY.on_policy.reward_model),
                out="{output.pairs}",
            ),
