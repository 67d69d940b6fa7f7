# Needs: exported models, the benchmarks' questions, test pairs. Makes: answers in the formats of AlpacaEval and
# FastChat, answers to test prompts, and preference pairs of a model's own answers.


# Finished batches are in .<answers>.parts next to the answers. That file is not an output: Snakemake deletes the
# outputs of a failed job, and the next start resumes from the file.
rule generate_alpaca_eval:
    input:
        model=f"{RUN}/model/manifest.json",
        questions=QUESTIONS,
    output:
        answers=f"{RUN}/alpaca_eval/answers.json",
    log:
        f"{LOGS}/generate_alpaca_eval/{{method}}-seed{{seed}}.log",
    benchmark:
        f"{COSTS}/generate_alpaca_eval/{{method}}-seed{{seed}}.tsv"
    conda:
        "../envs/sams.yaml"
    resources:
        **resources.generation(STUDY, GPUS_HERE),
    params:
        **JOBS.parameters("generate_answers", benchmark="alpaca_eval"),
        options=options("model", "questions", out="{output.answers}"),
    shell:
        STAGE


use rule generate_alpaca_eval as generate_mt_bench with:
    output:
        answers=f"{RUN}/mt_bench/answers.jsonl",
    log:
        f"{LOGS}/generate_mt_bench/{{method}}-seed{{seed}}.log",
    benchmark:
        f"{COSTS}/generate_mt_bench/{{method}}-seed{{seed}}.tsv"
    params:
        **JOBS.parameters("generate_answers", benchmark="mt_bench"),
        options=options("model", "questions", out="{output.answers}"),


# Answers to the first test prompts, for the page that shows the start model and the methods side by side.
use rule generate_alpaca_eval as generate_samples with:
    input:
        model=f"{RUN}/model/manifest.json",
        questions=DATA,
    output:
        answers=f"{RUN}/samples/answers.jsonl",
    log:
        f"{LOGS}/generate_samples/{{method}}-seed{{seed}}.log",
    benchmark:
        f"{COSTS}/generate_samples/{{method}}-seed{{seed}}.tsv"
    params:
        **JOBS.parameters("generate_answers", benchmark="samples"),
        options=options("model", "questions", out="{output.answers}"),


use rule generate_samples as generate_reward_model with:
    output:
        answers=f"{RUN}/reward_model/answers.jsonl",
    log:
        f"{LOGS}/generate_reward_model/{{method}}-seed{{seed}}.log",
    benchmark:
        f"{COSTS}/generate_reward_model/{{method}}-seed{{seed}}.tsv"
    params:
        **JOBS.parameters("generate_answers", benchmark="reward_model"),
        options=options("model", "questions", out="{output.answers}"),


if STUDY.on_policy:

    # Pairs of the best and the worst of several answers to each prompt, by a reward model.
    use rule generate_alpaca_eval as sample_pairs with:
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
