"""What can be known of an image without building it: its Dockerfile's lines, the packages that they install,
and whether the interpreter that stands in for it has them.
"""
