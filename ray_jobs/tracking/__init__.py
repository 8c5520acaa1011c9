"""Tracking of runs: a local journal first, and a background sender that mirrors it to MLflow.

    journal            Journal: append-only records in the run's folder; readers
    mlflow_sink        MlflowSink (in the background) and flush_journal (now)
    background_sender  the thread behind every sink: retries, and an end within a time
    journal_sender     sends each record exactly once, and how
    mlflow_run         the run on the server: found or made, what it has, what is sent
    mlflow_environment connection, bounded HTTP, creation of a local store
    model_artifact     the exported model as an MLflow model without pickle

`python -m ray_jobs.tracking FOLDER --tracking-uri URI` sends what a server missed.
"""
