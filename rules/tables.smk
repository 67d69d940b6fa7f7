# Needs: metrics.json, judgments and metric logs of every method and seed. Makes: tables and figures, from files only.
# These take seconds, and run where snakemake does.


rule main_table:
    input:
        data=per_seed(f"data/{OF_SEED}manifest.json"),
        curves=training_figures(),
        scores=scores(),
    output:
        csv=f"{TABLES}/main.csv",
        md=f"{TABLES}/main.md",
        tex=f"{TABLES}/main.tex",
        html=report(
            f"{TABLES}/main.html",
            caption="../workflow/report/main_table.rst",
            category="Tables",
            labels={"table": "main"},
        ),
    log:
        f"{LOGS}/main_table.log",
    localrule: True
    conda:
        "../envs/sams.yaml"
    resources:
        **resources.plain(STUDY, "tables"),
    params:
        study=STUDY_SETTINGS,
        results=results_folder,
        code=code_digest("sams.tables.main_table"),
    shell:
        "python -m sams.tables.main_table"
        " --study-config {params.study:q}"
        " --results {params.results:q}"
        " --out-csv {output.csv:q}"
        " --out-md {output.md:q}"
        " --out-tex {output.tex:q}"
        " --out-html {output.html:q}"
        " > {log:q} 2>&1"


if STUDY.paper:

    # The study's figures beside those that the paper reports.
    rule compare_with_paper:
        input:
            data=per_seed(f"data/{OF_SEED}manifest.json"),
            curves=training_figures(),
            scores=scores(),
            reported=f"{workflow.basedir}/sams/study/paper/{STUDY.paper.table}.yaml",
        output:
            csv=f"{TABLES}/paper.csv",
            md=f"{TABLES}/paper.md",
            tex=f"{TABLES}/paper.tex",
            html=report(
                f"{TABLES}/paper.html",
                caption="../workflow/report/paper_table.rst",
                category="Tables",
                labels={"table": "beside the paper"},
            ),
        log:
            f"{LOGS}/compare_with_paper.log",
        localrule: True
        conda:
            "../envs/sams.yaml"
        resources:
            **resources.plain(STUDY, "tables"),
        params:
            study=STUDY_SETTINGS,
            results=results_folder,
            code=code_digest("sams.tables.paper_table"),
        shell:
            "python -m sams.tables.paper_table"
            " --study-config {params.study:q}"
            " --results {params.results:q}"
            " --out-csv {output.csv:q}"
            " --out-md {output.md:q}"
            " --out-tex {output.tex:q}"
            " --out-html {output.html:q}"
            " > {log:q} 2>&1"


# Differences between methods on the same items, with intervals.
rule compare_methods:
    input:
        curves=training_figures(),
        scores=scores(),
    output:
        csv=f"{TABLES}/comparisons.csv",
        md=report(
            f"{TABLES}/comparisons.md",
            caption="../workflow/report/comparisons.rst",
            category="Tables",
            labels={"table": "comparisons"},
        ),
    log:
        f"{LOGS}/compare_methods.log",
    localrule: True
    conda:
        "../envs/sams.yaml"
    resources:
        **resources.plain(STUDY, "tables"),
    params:
        study=STUDY_SETTINGS,
        results=results_folder,
        code=code_digest("sams.tables.comparisons"),
    shell:
        "python -m sams.tables.comparisons"
        " --study-config {params.study:q}"
        " --results {params.results:q}"
        " --out-csv {output.csv:q}"
        " --out-md {output.md:q}"
        " > {log:q} 2>&1"


# What two methods answered, beside each other, and what the judge said.
rule show_answers:
    input:
        judged=judged_answers,
        questions=QUESTIONS,
        templates=[
            f"{workflow.basedir}/sams/tables/templates/side_by_side.html",
            f"{workflow.basedir}/sams/tables/templates/side_by_side.js",
        ],
    output:
        html=report(
            f"{TABLES}/answers/{{method}}/beside_{{base}}.html",
            caption="../workflow/report/side_by_side.rst",
            category="Answers",
            labels={"method": "{method}", "beside": "{base}"},
        ),
    log:
        f"{LOGS}/show_answers/{{method}}-beside-{{base}}.log",
    localrule: True
    conda:
        "../envs/sams.yaml"
    resources:
        **resources.plain(STUDY, "tables"),
    params:
        study=STUDY_SETTINGS,
        results=results_folder,
        code=code_digest("sams.tables.side_by_side"),
    shell:
        "python -m sams.tables.side_by_side"
        " --study-config {params.study:q}"
        " --results {params.results:q}"
        " --method {wildcards.method:q}"
        " --base {wildcards.base:q}"
        " --out {output.html:q}"
        " > {log:q} 2>&1"


rule draw_figures:
    input:
        data=per_seed(f"data/{OF_SEED}manifest.json"),
        curves=training_figures(),
    output:
        png=expand(f"{TABLES}/{{figure}}.png", figure=FIGURES),
        learning_curves=report(
            f"{TABLES}/learning_curves.svg",
            caption="../workflow/report/learning_curves.rst",
            category="Figures",
            labels={"figure": "learning curves"},
        ),
        selection=report(
            f"{TABLES}/selection.svg",
            caption="../workflow/report/selection.rst",
            category="Figures",
            labels={"figure": "selection"},
        ),
        difficulty=report(
            f"{TABLES}/difficulty.svg",
            caption="../workflow/report/difficulty.rst",
            category="Figures",
            labels={"figure": "drift of difficulty"},
        ),
        noise=report(
            f"{TABLES}/noise.svg",
            caption="../workflow/report/noise.rst",
            category="Figures",
            labels={"figure": "accuracy under noise"},
        ),
        cost=report(
            f"{TABLES}/cost.svg",
            caption="../workflow/report/cost.rst",
            category="Figures",
            labels={"figure": "cost"},
        ),
    log:
        f"{LOGS}/draw_figures.log",
    localrule: True
    conda:
        "../envs/sams.yaml"
    resources:
        **resources.plain(STUDY, "tables"),
    params:
        study=STUDY_SETTINGS,
        results=results_folder,
        code=code_digest("sams.tables.figures"),
        out=subpath(output.cost, parent=True),
    shell:
        "python -m sams.tables.figures"
        " --study-config {params.study:q}"
        " --results {params.results:q}"
        " --out {params.out:q}"
        " > {log:q} 2>&1"


rule tables:
    input:
        rules.main_table.output,
        rules.compare_with_paper.output if STUDY.paper else [],
        rules.compare_methods.output,
        rules.chosen_table.output if STUDY.chosen else [],
        answer_pages(),
        rules.draw_figures.output,
