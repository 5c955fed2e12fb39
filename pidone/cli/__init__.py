"""The command line. Process 1, which is ``pidone`` without arguments, does not import this package."""
