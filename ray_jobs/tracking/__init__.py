"""Tracking of runs: a local journal first, and a background sender that mirrors it to MLflow.

    journal            Journal: append-only records in the run's folder; readers
    mlflow_sink        MlflowSink (background), flush_journal (now): send each record exactly once
    mlflow_run         the run on the server: found or made, what it has, what is sent
    mlflow_environment connection, bounded HTTP, creation of a local store
    model_artifact     the exported model as an MLflow model without pickle

`python -m ray_jobs.tracking FOLDER --tracking-uri URI` sends what a server missed.
"""
