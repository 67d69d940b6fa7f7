# Needs: exported models, the benchmarks' questions. Makes: answers in the formats of AlpacaEval and FastChat; pairs
# of a model's own answers, where they are asked for.


# Finished batches lie in .<answers>.parts beside the answers. It is no output on purpose: Snakemake deletes those of
# a failed job, and the next start goes on with them.
rule generate_alpaca_eval:
    input:
        model=f"{RESULTS}/{{method}}/seed{{seed}}/model/manifest.json",
        questions=QUESTIONS,
    output:
        answers=f"{RESULTS}/{{method}}/seed{{seed}}/alpaca_eval/answers.json",
    log:
        f"{LOGS}/generate_alpaca_eval/{{method}}-seed{{seed}}.log",
    benchmark:
        f"{COSTS}/generate_alpaca_eval/{{method}}-seed{{seed}}.tsv"
    conda:
        "../envs/sams.yaml"
    resources:
        **resources.generation(STUDY, GPUS_HERE),
    params:
        recipe=recipe("generate_answers", benchmark="alpaca_eval"),
        code=code_digest("sams.generation.generate"),
        model=subpath(input.model, parent=True),
        questions=subpath(input.questions, parent=True),
    shell:
        "python -m sams.generation.generate"
        " --recipe {params.recipe:q}"
        " --model {params.model:q}"
        " --questions {params.questions:q}"
        " --out {output.answers:q}"
        " > {log:q} 2>&1"


use rule generate_alpaca_eval as generate_mt_bench with:
    output:
        answers=f"{RESULTS}/{{method}}/seed{{seed}}/mt_bench/answers.jsonl",
    log:
        f"{LOGS}/generate_mt_bench/{{method}}-seed{{seed}}.log",
    benchmark:
        f"{COSTS}/generate_mt_bench/{{method}}-seed{{seed}}.tsv"
    params:
        recipe=recipe("generate_answers", benchmark="mt_bench"),
        code=code_digest("sams.generation.generate"),
        model=subpath(input.model, parent=True),
        questions=subpath(input.questions, parent=True),


if STUDY.on_policy:

    # Of several answers to each prompt, the best and the worst by a reward model.
    rule sample_pairs:
        input:
            model=f"{RESULTS}/{{method}}/seed{{seed}}/model/manifest.json",
            prompts=prompt_files(),
        output:
            pairs=f"{RESULTS}/{{method}}/seed{{seed}}/on_policy/pairs.jsonl",
        log:
            f"{LOGS}/sample_pairs/{{method}}-seed{{seed}}.log",
        benchmark:
            f"{COSTS}/sample_pairs/{{method}}-seed{{seed}}.tsv"
        conda:
            "../envs/sams.yaml"
        resources:
            **resources.generation(STUDY, GPUS_HERE),
        params:
            recipe=recipe("sample_pairs"),
            code=code_digest("sams.generation.on_policy"),
            model=subpath(input.model, parent=True),
            prompts=STUDY.on_policy.prompts,
            reward_model=STUDY.on_policy.reward_model,
        shell:
            "python -m sams.generation.on_policy"
            " --recipe {params.recipe:q}"
            " --model {params.model:q}"
            " --prompts {params.prompts:q}"
            " --reward-model {params.reward_model:q}"
            " --out {output.pairs:q}"
            " > {log:q} 2>&1"
