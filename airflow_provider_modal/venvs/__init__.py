"""Packages that single tasks or DAG folders need on top of the image, as cached virtualenvs on the Volume.

From the list to the running task:

    requirements   which packages are wanted: a task's own, and those of the nearest ``requirements.txt``
    image          what the image has already, and which of that Airflow can't do without
    installer      uv resolves and installs what is missing, once
    archive        one file of it, and safely back to a folder
    store          archives on the Volume, by key; pruned when nobody uses them
    provision      all of the above in order: the folder is on this container's local disk
    operator_cache what virtualenv operators of Airflow make, kept in the same place
    activation     a process that runs user code finds the packages
"""

from __future__ import annotations
