"""The pod's end of the repo protocol: who am I, what is my plan, and here is what became of it."""
