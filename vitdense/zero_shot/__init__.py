"""Classes by what is said of them: prompts, classifiers from texts, their scores, and probes of frozen features."""
