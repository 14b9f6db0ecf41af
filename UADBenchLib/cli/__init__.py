"""The command line ``uadbench``: one file a command, heavy libraries imported only when it runs."""
