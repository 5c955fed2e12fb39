"""Process 1 of a pod, put together: signals, reaper, engine, repo client and the status port."""
