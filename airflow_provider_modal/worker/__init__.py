"""One dispatch of a task: claim it, run it under Airflow's supervisor, report how it ended."""
