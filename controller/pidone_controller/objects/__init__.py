"""TaskSets, TaskBindings and ControllerRevisions as last read from the API server and checked."""
