"""Variables for every Ray that a test or a process of it starts, set by `conftest.py`."""

RAY_OF_TESTS = {
    # By default Ray's workers get next to no share of a busy machine.
    "RAY_worker_niceness": "0",
    # A node starts no process for each of its CPUs beforehand: workers of a run, each with an environment of its own,
    # could not use them.
    "RAY_prestart_worker_first_driver": "0",
    # What looks after logs and processes would look through all of them many times a second.
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "1",
    "LOG_NAME_UPDATE_INTERVAL_S": "1",
    "REPORTER_UPDATE_INTERVAL_MS": "30000",
}
