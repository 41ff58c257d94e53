"""DAG bundles. Importing this package does not import Airflow."""
