"""The command line. Without arguments ``pidone`` is process 1 and never comes here."""
