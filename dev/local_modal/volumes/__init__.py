"""Volumes: how files are kept once committed, and what a container sees and changes before it commits.

`blobs` keeps contents by their sha256, `manifest` says which paths a version of a volume has, `paths`
computes what a client's operation changes, `store` moves a volume from one version to the next, `views` gives
every container a private copy and takes its changes back, and `openfiles` knows when a view is in use.
"""
