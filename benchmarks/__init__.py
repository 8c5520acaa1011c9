"""What measures the project: run from a clone, `python -m benchmarks.NAME`; none of it is installed.

Each has `--help`:

    step                 time, FLOPs and memory of a pretraining step
    contrastive_memory   memory of the contrastive loss by rows of the batch
    scaling              bytes and time of a step on many GPUs, by arithmetic (docs/scaling.md)
    plan_simulation      balance, order and load of the epoch plan for many ranks
    readers              samples per second of the readers and writers, beside their peers
    clip_jobs            build and extraction jobs beside the obvious loop
    sweep_trials         what a sweep costs beside a plain loop
    reproduce            the result tables of docs/results.md; reproduce.choices: what each choice is worth
"""
