"""The serverless scheduler: Airflow's own parser and scheduler, run in bounded pieces under one lock.

``tick`` wakes on a schedule; ``holder`` holds the lock in Modal's entry process and runs the pieces in
children of the zygote (``run``); ``bounded`` says when a piece ends; ``due`` asks the database what there is
to do; ``jobs`` keeps Airflow's job rows true. ``af3`` and ``af3_parsing`` are the adapters to Airflow 3.
"""
