# Needs: metrics.json, judgments and metric logs of every method and seed. Makes: tables and figures.
# These jobs take seconds, and are local rules.


rule main_table:
    input:
        data=per_seed(f"data/{OF_SEED}manifest.json"),
        curves=training_figures(),
        scores=scores(),
        agreement=agreement_file,
    output:
        **forms("main", "main_table", "main"),
        **agreement_copy(),
    log:
        f"{LOGS}/main_table.log",
    localrule: True
    conda:
        "../envs/sams.yaml"
    resources:
        **resources.plain(STUDY, "tables"),
    params:
        **table("main_table"),
    script:
        "../workflow/scripts/{params.script}.py"


if STUDY.paper:

    # The study's figures next to the paper's.
    use rule main_table as compare_with_paper with:
        input:
            data=per_seed(f"data/{OF_SEED}manifest.json"),
            curves=training_figures(),
            scores=scores(),
            agreement=agreement_file,
            reported=f"{PACKAGE}/study/paper/{STUDY.paper.table}.yaml",
        output:
            **forms("paper", "paper_table", "compared with the paper"),
        log:
            f"{LOGS}/compare_with_paper.log",
        params:
            **table("paper_table"),


# Differences between methods on the same items, with intervals.
use rule main_table as compare_methods with:
    input:
        curves=training_figures(),
        scores=scores(),
        pairs=pair_records(),
    output:
        **forms("comparisons", "comparisons", "comparisons"),
    log:
        f"{LOGS}/compare_methods.log",
    params:
        **table("comparisons"),


# Answers of two methods side by side, with the judge's verdicts.
use rule main_table as show_answers with:
    input:
        judged=judged_answers,
        questions=[questions_of(benchmark.name) for benchmark in judged(STUDY)],
        templates=[
            f"{PACKAGE}/tables/templates/{name}" for name in ("side_by_side.html", "page.html", "page.js")
        ],
    output:
        html=report(
            f"{TABLES}/answers/{{method}}/with_{{base}}.html",
            caption="../workflow/report/side_by_side.rst",
            category="Answers",
            labels={"method": "{method}", "compared with": "{base}"},
        ),
    log:
        f"{LOGS}/show_answers/{{method}}-with-{{base}}.log",
    params:
        **{**table("answers_page"), "study": study_of_pair},


# Answers of the start model and all methods to test prompts.
use rule main_table as show_samples with:
    input:
        answers=samples(),
        data=DATA.format(seed=STUDY.seeds[0]),
        templates=[f"{PACKAGE}/tables/templates/{name}" for name in ("samples.html", "page.html", "page.js")],
    output:
        html=report(
            f"{TABLES}/samples.html",
            caption="../workflow/report/samples.rst",
            category="Answers",
            labels={"method": "all methods", "compared with": "start model, test pairs"},
        ),
    log:
        f"{LOGS}/show_samples.log",
    params:
        **table("samples_page"),


# The pairs that a method trusts most and least.
use rule main_table as show_pairs with:
    input:
        pairs=pair_records_of,
        data=per_seed(f"data/{OF_SEED}manifest.json"),
        template=f"{PACKAGE}/tables/templates/pairs.html",
    output:
        html=report(
            f"{TABLES}/pairs/{{method}}.html",
            caption="../workflow/report/pairs.rst",
            category="Pairs",
            labels={"method": "{method}"},
        ),
    log:
        f"{LOGS}/show_pairs/{{method}}.log",
    wildcard_constraints:
        method=one_of(STUDY.preference_methods),
    params:
        **{**table("pairs_page"), "study": study_of_method},


use rule main_table as draw_pairs with:
    input:
        pairs=pair_records(),
    output:
        png=f"{TABLES}/pair_margins.png",
        svg=figure("pair_margins"),
    log:
        f"{LOGS}/draw_pairs.log",
    params:
        **table("pairs_figure"),


use rule main_table as draw_figures with:
    input:
        data=per_seed(f"data/{OF_SEED}manifest.json"),
        curves=training_figures(),
    output:
        png=expand(f"{TABLES}/{{figure}}.png", figure=FIGURES),
        svg=[figure(name) for name in FIGURES],
    log:
        f"{LOGS}/draw_figures.log",
    params:
        **table("figures"),


rule tables:
    input:
        rules.main_table.output,
        rules.compare_with_paper.output if STUDY.paper else [],
        rules.compare_methods.output,
        f"{TABLES}/chosen.csv" if STUDY.chosen else [],
        answer_pages(),
        f"{TABLES}/samples.html" if STUDY.samples else [],
        pair_pages(),
        rules.draw_figures.output,
