"""The operations behind the command line: run beside the database, by the function ``control``.

``client`` is the command line's side. ``operations`` runs in Modal's entry process and answers; what needs
Airflow it has done in a child of the zygote (``child``), by ``database``, ``dags``, ``runs`` and ``xcoms``.
"""
