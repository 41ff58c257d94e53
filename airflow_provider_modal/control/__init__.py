"""The operations behind the command line: where they run (``operations``) and who calls them (``client``)."""
