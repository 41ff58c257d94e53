"""Retention: what of the Volume nobody needs any more. Importing this imports neither Modal nor Airflow."""
