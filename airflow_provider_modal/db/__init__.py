"""PostgreSQL without Airflow: connections and the lock that makes a scheduler run the only one."""
