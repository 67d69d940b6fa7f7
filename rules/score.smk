# Needs: answers, the benchmarks' questions, a judge or a reward model. Makes: judgments and metrics.json of each benchmark.


# Makes the difficulty table of the world's instructions, which AlpacaEval's length control needs.
rule make_difficulty:
    input:
        questions=QUESTIONS,
    output:
        table=f"{RESULTS}/difficulty/difficulty.csv",
        report=f"{RESULTS}/difficulty/report.json",
    log:
        f"{LOGS}/make_difficulty.log",
    conda:
        "../envs/sams.yaml"
    resources:
        **resources.plain(STUDY, "score"),
    params:
        **JOBS.parameters("make_difficulty"),
        options=options("questions", out="{output.table}", report="{output.report}"),
    shell:
        STAGE


rule score_alpaca_eval:
    input:
        answers=f"{RUN}/alpaca_eval/answers.json",
        questions=QUESTIONS,
        difficulty=difficulty_table,
    output:
        metrics=f"{RUN}/alpaca_eval/metrics.json",
        annotations=f"{RUN}/alpaca_eval/annotations.json",
    log:
        f"{LOGS}/score_alpaca_eval/{{method}}-seed{{seed}}.log",
    benchmark:
        f"{COSTS}/score_alpaca_eval/{{method}}-seed{{seed}}.tsv"
    conda:
        "../envs/sams.yaml"
    resources:
        **resources.plain(STUDY, "score"),
    params:
        **JOBS.parameters("score_alpaca_eval"),
        options=options(
            "difficulty",
            model_outputs="{input.answers}",
            reference_outputs=f"{RESULTS}/questions/alpaca_eval.json",
            out="{output.metrics}",
            annotations_out="{output.annotations}",
        ),
    shell:
        STAGE


use rule score_alpaca_eval as score_mt_bench with:
    input:
        answers=f"{RUN}/mt_bench/answers.jsonl",
        questions=QUESTIONS,
    output:
        metrics=f"{RUN}/mt_bench/metrics.json",
        judgments=f"{RUN}/mt_bench/judgments.jsonl",
    log:
        f"{LOGS}/score_mt_bench/{{method}}-seed{{seed}}.log",
    benchmark:
        f"{COSTS}/score_mt_bench/{{method}}-seed{{seed}}.tsv"
    params:
        **JOBS.parameters("score_mt_bench"),
        options=options(
            "answers",
            questions=f"{RESULTS}/questions/mt_bench_questions.jsonl",
            references=f"{RESULTS}/questions/mt_bench_references.jsonl",
            judge_prompts=f"{RESULTS}/questions/judge_prompts.jsonl",
            out="{output.metrics}",
            judgments_out="{output.judgments}",
        ),


# Rewards of the answers to test prompts, compared with those of the start model.
rule score_reward_model:
    input:
        answers=f"{RUN}/reward_model/answers.jsonl",
        data=DATA,
        start=start_rewards,
    output:
        metrics=f"{RUN}/reward_model/metrics.json",
        rewards=f"{RUN}/reward_model/rewards.jsonl",
    log:
        f"{LOGS}/score_reward_model/{{method}}-seed{{seed}}.log",
    benchmark:
        f"{COSTS}/score_reward_model/{{method}}-seed{{seed}}.tsv"
    conda:
        "../envs/sams.yaml"
    resources:
        **resources.generation(STUDY, GPUS_HERE),
    params:
        **JOBS.parameters("score_reward_model"),
        options=options("answers", "data", "start", out="{output.metrics}", rewards_out="{output.rewards}"),
    shell:
        STAGE


# Tasks of lm-eval on the exported model.
rule score_lm_eval:
    input:
        model=f"{RUN}/model/manifest.json",
    output:
        metrics=f"{RUN}/lm_eval/metrics.json",
        scores=f"{RUN}/lm_eval/items.jsonl",
        results=f"{RUN}/lm_eval/results.json",
    log:
        f"{LOGS}/score_lm_eval/{{method}}-seed{{seed}}.log",
    benchmark:
        f"{COSTS}/score_lm_eval/{{method}}-seed{{seed}}.tsv"
    conda:
        "../envs/sams.yaml"
    resources:
        **resources.generation(STUDY, GPUS_HERE),
    params:
        **JOBS.parameters("score_lm_eval"),
        options=options(
            "model", out="{output.metrics}", items_out="{output.scores}", results_out="{output.results}"
        ),
    shell:
        STAGE
