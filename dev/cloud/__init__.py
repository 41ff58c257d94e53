"""Does Modal's cloud behave as the provider and the local Modal server assume? See `dev/cloud_check --help`.

`probes`, `ground` and `zygote` run in containers, `checks` ask them from outside, `findings` holds what is
assumed and what was seen. Containers import this package, so its `__init__` imports nothing.
"""
