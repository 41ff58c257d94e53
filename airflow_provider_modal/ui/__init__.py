"""What this provider adds to Airflow's UI, and around it."""
