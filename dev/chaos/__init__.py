"""Many tasks while everything fails: are the executor's promises kept?"""
