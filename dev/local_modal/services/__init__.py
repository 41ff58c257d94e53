"""One module per area of the Modal API; each class serves the RPCs that its public methods are named
after.
"""
